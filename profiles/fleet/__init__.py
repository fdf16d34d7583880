"""What a fleet of replicas would do: a simulation of discrete events, driven by step costs that were measured."""
