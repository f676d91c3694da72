"""Fine-tune the forward model: python train.py --config configs/debug.yaml --output out"""

from ie_jax.training.command import main

if __name__ == "__main__":
    main()
