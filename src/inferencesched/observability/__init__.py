"""What happened, how often, how long did it take, and how many servers would be right?"""
