"""What a person types: `classifier NAME`, a module each. Begin with `application`, which finds them."""
