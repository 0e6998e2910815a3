"""The public functions: check the arguments, view them as the kernels do, call, and put the results into shape.

Every function takes x in float16, bfloat16, float32 or float64. Halves are computed in float32, the others in their own
type, with sums beyond a few thousand values in float64. Inputs are never changed except the running statistics, and
`out` where it is one of them.
"""
