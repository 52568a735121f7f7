"""Operations on the active latents alone. Each file holds an equation, its reference, its kernels,
and the function that picks one.
"""
