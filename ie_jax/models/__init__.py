"""The networks as pure functions of (weights, inputs), and what their layers share."""
