"""The parts of the device agent: store, engine processes, models, services, guards."""
