"""`penstock bench`: speed of an engine, beside what the machine's measured limits allow."""
