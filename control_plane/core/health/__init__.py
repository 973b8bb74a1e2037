"""Health of a training: signs in, alerts and the trust in a checkpoint out; pure, so that every machine agrees.

Read in this order: `signs.py` (every measurement), `settings.py` (every threshold), `detectors/` (one class a kind of
alert), `monitor.py` (all of them over one training), `advice/` (for people).
"""
