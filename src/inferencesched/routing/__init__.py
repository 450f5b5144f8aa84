"""What does a request ask for, under which name, and which pool is it for?"""
