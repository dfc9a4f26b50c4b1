"""The sources of environmental sounds, by where they are met."""
