"""The way out: addresses that are checked, connections that end where they were checked, HTTP.

Owns every connection that goclaw makes to somebody else's server. Not in here: its own listeners
(gateway), decisions (policy).
"""
