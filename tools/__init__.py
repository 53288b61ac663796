"""Programs for those who keep this repository: checks, records, comparisons of training runs."""
