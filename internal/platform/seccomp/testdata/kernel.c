/*
 * Asks the kernel for verdicts, for kernel_test.go: reads how many instructions, the
 * instructions, and how many calls follow, each an ABI (0 native, 1 by int 0x80), a number
 * and six arguments. A child installs the filter and makes the calls; what each returned
 * is printed, one a line. Every call has to be answered by the filter: none is made.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct call {
	uint64_t abi, nr, args[6];
};

static long make(const struct call *c)
{
	const uint64_t *a = c->args;
	long rc;

	if (c->abi == 0) {
		register uint64_t r10 __asm__("r10") = a[3];
		register uint64_t r8 __asm__("r8") = a[4];
		register uint64_t r9 __asm__("r9") = a[5];

		__asm__ volatile("syscall"
			: "=a"(rc)
			: "a"(c->nr), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
			: "rcx", "r11", "memory");
	} else {
		register uint64_t r12 __asm__("r12") = a[5]; /* it goes to ebp */

		__asm__ volatile("push %%rbp\n\tmov %%r12, %%rbp\n\tint $0x80\n\tpop %%rbp"
			: "=a"(rc)
			: "a"((uint32_t)c->nr), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4]), "r"(r12)
			: "r8", "r9", "r10", "r11", "memory");
		rc = (int)rc;
	}
	return rc;
}

int main(void)
{
	unsigned int n, calls, code, jt, jf;
	uint32_t k;

	if (scanf("%u", &n) != 1)
		errx(1, "no program");
	struct sock_filter *f = calloc(n, sizeof(*f));

	for (unsigned int i = 0; i < n; i++) {
		if (scanf("%u %u %u %u", &code, &jt, &jf, &k) != 4)
			errx(1, "instruction %u", i);
		f[i] = (struct sock_filter){ code, jt, jf, k };
	}
	struct sock_fprog prog = { n, f };

	if (scanf("%u", &calls) != 1)
		errx(1, "no calls");
	struct call *c = calloc(calls, sizeof(*c));
	long *out = mmap(NULL, (calls + 1) * sizeof(*out), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	for (unsigned int i = 0; i < calls; i++) {
		uint64_t *w = (uint64_t *)&c[i];

		for (int j = 0; j < 8; j++)
			if (scanf("%lu", &w[j]) != 1)
				errx(1, "call %u", i);
	}
	pid_t child = fork();

	if (child == 0) {
		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog)) {
			out[calls] = -errno;
			_exit(1);
		}
		for (unsigned int i = 0; i < calls; i++)
			out[i] = make(&c[i]);
		out[calls] = 1;
		__builtin_trap(); /* it may not even exit */
	}
	int status;

	if (child < 0 || waitpid(child, &status, 0) != child)
		err(1, "child");
	if (out[calls] < 0)
		errx(1, "install: errno %ld", -out[calls]);
	for (unsigned int i = 0; i < calls && !out[calls]; i++)
		if (!out[i])
			errx(1, "status %#x at call %u, number %#lx, ABI %lu", status, i, c[i].nr, c[i].abi);
	for (unsigned int i = 0; i < calls; i++)
		printf("%ld\n", out[i]);
	return 0;
}
