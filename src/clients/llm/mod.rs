//! Models: one client a provider kind, all with the same answer type.
