"""Whom may a request go to at all, before anything is known of load?"""
