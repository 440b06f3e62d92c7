"""How Tunesmith is spoken to: the only place that knows HTTP. It calls services and knows no SQL and no torch."""
