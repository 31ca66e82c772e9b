"""Right uses of Tensor, which mypy --strict accepts and which run."""
import minigrad as mg

x: mg.Tensor = mg.tensor([[1.0, 2.0], [3.0, 4.0]])
y: mg.Tensor = x + 1.0 - 2.0 * x / x
y = 1.0 / x + 2.0 ** x - x ** 2.0
y = -abs(x) @ x
y = x[0] + x[:, 1] + x[..., None][0, :, 0]
y = x.exp().log().sqrt().tanh().erf().sigmoid().relu().abs()
y = x.sum() + x.sum(0).sum() + x.sum((0, 1)) + x.sum(axis=0, keepdims=True).sum()
y = x.sum(dim=0) + x.sum(1, True).reshape(2) + x.mean(dim=-1, keepdim=True).view(-1)
y = x.var(0, correction=1) + x.var(axis=0, ddof=0) + x.var(unbiased=False)
y = x.max() + x.min(axis=0) + x.logsumexp(1) + x.prod(0)
y = x.clip(0.0, 1.0) + x.clip(min=0.5)
y = x.reshape(4).reshape((2, 2)).reshape(-1, 2).flatten().unsqueeze(0).squeeze(0).squeeze()
y = x.T + x.mT + x.transpose() + x.transpose(0, 1) + x.permute(1, 0) + x.permute((1, 0))
a, b = x.split(sections=2)
y = x.tril() + x.triu(1)
y = x.take(mg.tensor([0, 1]), axis=0) + x.gather(1, mg.tensor([[0], [1]]))
y = x.scatter_add(1, mg.tensor([[0], [1]]), mg.ones(2, 1))
y = x.float() + x.double().float() + x.half().float() + x.astype("float64").type_as(x)
y = x.to("numpy") + x.to("float32") + x.cpu()
n: int = x.dim() + x.ndim + x.numel() + len(x)
shape: tuple[int, ...] = x.shape
text: str = f"{x.sum():.3f}" + x.device
number: float = float(x.sum()) + x.sum().item()
w = mg.tensor([1.0, 2.0], requires_grad=True)
w.requires_grad_().sum().backward()
gradient: mg.Tensor | None = w.grad
(w * w).backward(mg.ones(2), retain_graph=True)
y = w.detach()
x += 1.0
x *= 2.0

y = mg.softmax(x, -1) + mg.log_softmax(x, axis=0) + mg.tanh(x) + mg.maximum(x, 0.0)
y = mg.sum(x, 0) + mg.mean(x, axis=1, keepdims=True).reshape(2) + mg.reshape(x, (4,)).sum()
y = mg.matmul(x, x) + mg.where(x > 1.0, x, 0.0) + mg.clip(x, 0.0, 1.0) + mg.permute(x, (1, 0))
y = mg.concat([x, x], 0).sum() + mg.stack([x, x]).sum() + mg.gelu(x, approximate="tanh")
y = mg.cross_entropy(x, mg.tensor([0, 1])) + mg.layer_norm(x, mg.ones(2), mg.zeros(2))
