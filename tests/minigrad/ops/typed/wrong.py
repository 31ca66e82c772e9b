"""Wrong uses of Tensor: mypy --strict refuses each line that says so. Nothing here is run."""
import minigrad as mg

x: mg.Tensor = mg.tensor([[1.0, 2.0], [3.0, 4.0]])
x.reqires_grad_()  # wrong
x.sun()  # wrong
x.sum(axes=0)  # wrong
x.sum(axis="rows")  # wrong
x.sum(0, keepdim=3)  # wrong
x.sum(0, True, False)  # wrong
x.sum(axis=1.5)  # wrong
x.mean(dims=0)  # wrong
x.mean(keepdims="yes")  # wrong
x.var(0, 1)  # wrong
x.var(0, correction="n")  # wrong
x.max(1)  # wrong
x.max(dim=1)  # wrong
x.min(0)  # wrong
x.logsumexp("all")  # wrong
x.prod(dim=0)  # wrong
x.clip(0.0, 1.0, 2.0)  # wrong
x.clip(low=0.0)  # wrong
x.flatten("C")  # wrong
x.flatten(0, 1, 2)  # wrong
x.squeeze((0, 1))  # wrong
x.unsqueeze()  # wrong
x.unsqueeze("last")  # wrong
x.transpose(dim0="a")  # wrong
x.split(sections="two")  # wrong
x.split(sizes=3)  # wrong
x.tril(k=1)  # wrong
x.triu("up")  # wrong
x.take()  # wrong
x.take(mg.tensor([0]), axis="rows")  # wrong
x.gather(mg.tensor([[0]]), axis="rows")  # wrong
x.scatter_add(0, mg.tensor([[0]]), x, x)  # wrong
x.astype()  # wrong
x.astype("float32", "float64")  # wrong
x.to()  # wrong
x.cuda("cupy:0", 1)  # wrong
x.double("cpu")  # wrong
x.half(True)  # wrong
x.T()  # wrong
x.shape()  # wrong
x.ndim()  # wrong
x.exp(2.0)  # wrong
x.relu(inplace=True)  # wrong
x.abs(1)  # wrong
x.item(0)  # wrong
x.numpy(force=True)  # wrong
x.backward(retain_grad=True)  # wrong
x.backward(retain=True)  # wrong
x.requires_grad_(True, False)  # wrong
x.detach(True)  # wrong
x.assign()  # wrong
x.numel = 3  # wrong
text: str = x.sum()  # wrong
number: int = x.shape  # wrong
y: mg.Tensor = x.dim()  # wrong
w: list[int] = x.reshape(4)  # wrong
mg.softmax(x, axes=0)  # wrong
mg.softmax(x, "last")  # wrong
mg.softmax()  # wrong
mg.tanh(x, x)  # wrong
mg.exp(x, base=2)  # wrong
mg.sum(x, axis="all")  # wrong
mg.mean(x, 0, "yes")  # wrong
mg.reshape(x)  # wrong
mg.reshape(x, size=(4,))  # wrong
mg.maximum(x)  # wrong
mg.matmul(x, x, x)  # wrong
mg.layer_norm(x, epsilon=1e-5)  # wrong
mg.sfotmax(x)  # wrong
n: int = mg.softmax(x)  # wrong
mg.softmax(x).sun()  # wrong
