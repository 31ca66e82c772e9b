"""The laws that differentiable array code obeys, and the kit that checks them."""
