"""How does a configuration become a scheduler, and a scheduler a configuration?"""
