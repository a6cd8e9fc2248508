"""The contract between training and serving: network, routing maths, cost table, bundles."""
