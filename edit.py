"""Edit a photo by text: python edit.py --image photo.jpg --source "..." --target "..." """

from ie_jax.editing.command import main

if __name__ == "__main__":
    main()
