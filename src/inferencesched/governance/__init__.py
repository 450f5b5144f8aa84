"""Who asks, may they, how much of it, and who hears of it?"""
