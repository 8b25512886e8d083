//! The work itself, generic over the ports: which mode, its templates, its deadline, its outcome.
