/* Softmax and its gradient in C, as a program that the laws can be put to (docs/any-language.md).
   cc -O2 -o softmax softmax.c -lm && python -m minigrad.testing --exec ./softmax --op softmax --dtype float32 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ── the kernel: n numbers, each `step` after the one before ── */
static void softmax(const float *x, float *y, long n, long step) {
    float top = -INFINITY, total = 0;
    for (long i = 0; i < n; i++) top = fmaxf(top, x[i * step]);
    for (long i = 0; i < n; i++) total += y[i * step] = expf(x[i * step] - top);
    for (long i = 0; i < n; i++) y[i * step] /= total;
}

static void softmax_vjp(const float *g, const float *x, float *dx, long n, long step) {
    float along = 0;
    softmax(x, dx, n, step);
    for (long i = 0; i < n; i++) along += g[i * step] * dx[i * step];
    for (long i = 0; i < n; i++) dx[i * step] *= g[i * step] - along;
}

/* ── the protocol ── */
typedef struct { char dtype[16]; int axes; long length[8], size; float *data; } Array;

static void read_array(char *line, Array *a) {          /* DTYPE AXES LENGTH ..., and after the line the numbers */
    int used;
    sscanf(line, "%15s %d%n", a->dtype, &a->axes, &used);
    line += used;
    a->size = 1;
    for (int i = 0; i < a->axes; i++) a->size *= a->length[i] = strtol(line, &line, 10);
    size_t bytes = a->size * (strcmp(a->dtype, "float32") ? 8 : 4);
    a->data = realloc(a->data, bytes + 1);
    if (fread(a->data, 1, bytes, stdin) < bytes) exit(1);
}

static void write_array(const char *name, const Array *like, const float *data) {
    printf("array %s float32 %d", name, like->axes);
    for (int i = 0; i < like->axes; i++) printf(" %ld", like->length[i]);
    printf("\n");
    fwrite(data, sizeof *data, like->size, stdout);
}

int main(void) {
    char call[4096], line[4096];
    Array x = {0}, g = {0};
    while (fgets(call, sizeof call, stdin)) {           /* "value\n" or "vjp\n" */
        int axis = -1;
        while (fgets(line, sizeof line, stdin) && strcmp(line, "end\n")) {
            sscanf(line, "setting axis %d", &axis);
            if (strncmp(line, "array x ", 8) == 0) read_array(line + 8, &x);
            if (strncmp(line, "array cotangent ", 16) == 0) read_array(line + 16, &g);
        }
        if (strcmp(x.dtype, "float32")) {
            printf("skip this kernel is for float32\n");
        } else {
            int forward = strcmp(call, "value\n") == 0;
            float *out = malloc(x.size * sizeof *out + 1);
            axis = (axis + x.axes) % x.axes;
            long n = x.length[axis], step = 1;
            for (int i = axis + 1; i < x.axes; i++) step *= x.length[i];
            for (long row = 0; n && row < x.size / n; row++) {
                long at = row / step * step * n + row % step;           /* where the row begins */
                if (forward) softmax(x.data + at, out + at, n, step);
                else softmax_vjp(g.data + at, x.data + at, out + at, n, step);
            }
            write_array(forward ? "value" : "x", &x, out);
            printf("end\n");
            free(out);
        }
        fflush(stdout);                                 /* or both sides wait for ever */
    }
    return 0;
}
