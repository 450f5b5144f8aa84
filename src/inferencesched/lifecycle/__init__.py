"""What becomes of a request once it was sent?"""
