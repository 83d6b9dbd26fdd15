//! Recipes that are broken on purpose.
