"""Safe forms as functions for the user's script; the same arithmetic as :mod:`steadygrad.repair.effects.safe_forms`."""

PUT = '''
def in_place_of(unsafe, harmless, instead, function, x):
    """function(x) where x is safe, ``instead`` elsewhere; gradients are finite everywhere."""
    if not bool(unsafe.any()):
        return function(x)
    out = function(torch.where(unsafe, torch.full_like(x, harmless), x))
    instead = instead.to(out.dtype) if isinstance(instead, torch.Tensor) else torch.full_like(out, instead)
    return torch.where(unsafe, instead, out)
'''
LOG = '''
def safe_log(x, origin=None):
    """log(x), finite at 0; its tangent at 0.01 from there down if there are negative values."""
    tiny = torch.finfo(x.dtype).tiny
    if origin is not None and bool((x < tiny).any()):
        exact = origin()
        exact = torch.where(exact.isinf(), torch.full_like(exact, tiny).log(), exact)
        return torch.where(x < tiny, exact, torch.log(torch.where(x < tiny, torch.ones_like(x), x)))
    if bool(((x < 0) & (x > -math.inf)).any()):
        unsafe = (x < 0.01) & (x > -math.inf)
        return in_place_of(unsafe, 1.0, math.log(0.01) + (x - 0.01) / 0.01, torch.log, x)
    return in_place_of((x < tiny) & (x > -math.inf), 1.0, math.log(tiny), torch.log, x)
'''
SQRT = '''
def safe_sqrt(x):
    """sqrt(x), with a gradient of 0 at 0."""
    return in_place_of((x <= 0) & (x > -math.inf), 1.0, 0.0, torch.sqrt, x)
'''
EXP = '''
def safe_exp(x):
    """exp(x), continued by its tangent where its fourth power would overflow."""
    top = math.log(torch.finfo(x.dtype).max) / (2 if x.dtype is torch.float16 else 4)
    instead = (math.exp(top) * (1 + (x - top))).clamp(max=torch.finfo(x.dtype).max)
    return in_place_of((x > top) & (x < math.inf), 0.0, instead, torch.exp, x)
'''
DIV = '''
def safe_div(top, bottom):
    """top / bottom, 0 where the quotient or its gradient would not be finite."""
    if not isinstance(bottom, torch.Tensor):
        return top * 0 if bottom == 0 and isinstance(top, torch.Tensor) else top / bottom
    with torch.no_grad():
        quotient = top / bottom
        number = bottom if bottom.is_floating_point() else bottom.to(quotient.dtype)
        sound = quotient.isfinite() & (number != 0)
        if bottom.requires_grad:
            sound &= (quotient / number).isfinite()
        if isinstance(top, torch.Tensor) and top.requires_grad:
            sound &= number.reciprocal().isfinite()
        known = torch.isfinite(top) if isinstance(top, torch.Tensor) else torch.full((), math.isfinite(top))
        unsafe = ~sound & known.to(number.device) & number.isfinite()
    if not bool(unsafe.any()):
        return top / bottom
    return torch.where(unsafe, torch.zeros_like(quotient), top) / torch.where(unsafe, torch.ones_like(quotient), bottom)
'''
POW = '''
def safe_pow(x, power):
    """x ** power, with finite gradients where x is 0, or too small for them."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or isinstance(power, (torch.Tensor, complex)):
        return x**power
    whole, call = float(power).is_integer(), lambda x: x**power
    if power >= 0 and whole:
        return call(x)
    if power >= 1:
        return in_place_of((x < 0) & (x > -math.inf), 1.0, 0.0, call, x)
    floor = float(torch.finfo(x.dtype).max) ** (1 / (power - 1))
    if power > 0:
        return in_place_of((x <= floor) & (x > -math.inf), 1.0, x.detach().clamp(min=0).pow(power), call, x)
    if whole:
        sign = torch.where(x < 0, -1.0, 1.0) if power % 2 else torch.ones_like(x)
        return in_place_of(x.abs() < floor, 1.0, sign * floor**power, call, x)
    return in_place_of((x < floor) & (x > -math.inf), 1.0, floor**power, call, x)
'''
MASKED = '''
def masked_rows(x, dim):
    """Where a row is -inf throughout."""
    return x.detach().amax(dim, keepdim=True) == -math.inf
'''
SOFTMAX = '''
def safe_softmax(x, dim, **more):
    """softmax(x), 0 in rows that are -inf throughout."""
    dead = masked_rows(x, dim)
    if not bool(dead.any()):
        return torch.softmax(x, dim, **more)
    out = torch.softmax(torch.where(dead, torch.zeros_like(x), x), dim, **more)
    return torch.where(dead, torch.zeros_like(out), out)
'''
LOG_SOFTMAX = '''
def safe_log_softmax(x, dim, **more):
    """log_softmax(x), that of equal values in rows that are -inf throughout."""
    dead = masked_rows(x, dim)
    return torch.log_softmax(torch.where(dead, torch.zeros_like(x), x) if bool(dead.any()) else x, dim, **more)
'''
NORM = '''
def safe_norm(function, x, p=2, dim=None, keepdim=False):
    """The Euclidean norm, with a gradient of 0 at 0, scaled where squares overflow; ``function`` where that is not."""
    if p not in (None, 2, "fro") or x.numel() == 0:
        return function(x)
    axes = tuple(range(x.dim())) if dim is None else dim
    dead = x.detach().abs().amax(axes, keepdim=True) == 0
    with torch.no_grad():
        plain = torch.linalg.vector_norm(x, dim=axes, keepdim=True)
        large = plain.isinf() & x.isfinite().all()
    trouble = (dead & x.requires_grad) | large
    if not bool(trouble.any()):
        return function(x)
    one = torch.ones_like(x)
    out = torch.linalg.vector_norm(torch.where(trouble, one, x), dim=axes, keepdim=True)
    out = torch.where(dead, torch.zeros_like(out), out)
    if bool(large.any()):
        size = x.detach().abs().amax(axes, keepdim=True)
        scaled = torch.linalg.vector_norm(torch.where(large, x / size, one), dim=axes, keepdim=True)
        out = torch.where(large, scaled * size, out)
    return out if keepdim else (out.reshape(()) if dim is None else out.squeeze(axes))
'''

HELPERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "log": ("safe_log", (PUT, LOG)),
    "sqrt": ("safe_sqrt", (PUT, SQRT)),
    "exp": ("safe_exp", (PUT, EXP)),
    "div": ("safe_div", (DIV,)),
    "true_divide": ("safe_div", (DIV,)),
    "pow": ("safe_pow", (PUT, POW)),
    "softmax": ("safe_softmax", (MASKED, SOFTMAX)),
    "log_softmax": ("safe_log_softmax", (MASKED, LOG_SOFTMAX)),
    "norm": ("safe_norm", (NORM,)),
    "vector_norm": ("safe_norm", (NORM,)),
}
"""Name of the operation -> the function in its place, and the helpers that this takes."""
