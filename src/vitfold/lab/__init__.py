"""What compares methods: sweeps, reports, analyses, the demo."""
