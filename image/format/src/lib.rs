//! What is on an Outpost disk: partition types and the self-describing slot image.
