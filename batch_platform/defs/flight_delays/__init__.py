"""The shipped pipeline: late arrivals of flights from New York in 2013."""
