"""What a run leaves for people to read and sign: report.json, and report.html made from it alone."""
