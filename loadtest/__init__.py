"""The parts of locustfile.py. They need locust and nothing else."""
