"""Who holds which leading blocks of a prompt?"""
