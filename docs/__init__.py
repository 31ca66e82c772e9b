"""The pages, what builds them into a site, and what checks that they say what is so."""
