"""One thin module per resource: read the request, call a service, write the answer."""
