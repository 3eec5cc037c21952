/*
 * Compiles filters with libseccomp, for libseccomp_test.go to compare with. Reads one
 * order a line, of words between spaces:
 *
 *   name ARCH CALL                             answers the call's number
 *   new ACTION OPTIMIZE                        starts a filter with a default action
 *   arch ARCH                                  adds an architecture
 *   only ARCH                                  adds it and takes the native one away
 *   rule ACTION CALL [INDEX OPERATOR A B]...   adds a rule
 *   end                                        answers "N" and N lines "CODE JT JF K", or
 *                                              "-ERRNO" of the first order that failed
 */
#define _GNU_SOURCE
#include <err.h>
#include <linux/filter.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static enum scmp_compare operator(const char *s)
{
	static const char *names[] = { "", "NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ" };

	for (int i = 1; i < 8; i++)
		if (strcmp(s, names[i]) == 0)
			return i;
	errx(1, "operator %s", s);
}

static char *word(void)
{
	char *w = strtok(NULL, " \n");

	if (!w)
		errx(1, "an order is cut short");
	return w;
}

static int rule(scmp_filter_ctx ctx)
{
	uint32_t action = strtoul(word(), NULL, 0);
	int nr = seccomp_syscall_resolve_name(word());
	struct scmp_arg_cmp args[6];
	unsigned int n = 0;

	for (char *w; (w = strtok(NULL, " \n")); n++) {
		args[n].arg = strtoul(w, NULL, 0);
		args[n].op = operator(word());
		args[n].datum_a = strtoull(word(), NULL, 0);
		args[n].datum_b = strtoull(word(), NULL, 0);
	}
	if (nr == __NR_SCMP_ERROR)
		return 0;
	return seccomp_rule_add_array(ctx, action, nr, n, args);
}

static void export(scmp_filter_ctx ctx)
{
	int fd = memfd_create("filter", MFD_CLOEXEC);
	struct sock_filter f;
	int rc = seccomp_export_bpf(ctx, fd);

	if (rc) {
		printf("%d\n", rc);
	} else {
		printf("%ld\n", (long)(lseek(fd, 0, SEEK_END) / sizeof(f)));
		lseek(fd, 0, SEEK_SET);
		while (read(fd, &f, sizeof(f)) == sizeof(f))
			printf("%u %u %u %u\n", f.code, f.jt, f.jf, f.k);
	}
	close(fd);
}

int main(void)
{
	char line[1 << 16];
	scmp_filter_ctx ctx = NULL;
	int rc = 0;

	while (fgets(line, sizeof(line), stdin)) {
		char *order = strtok(line, " \n");
		int bad = 0;

		if (!order)
			continue;
		if (strcmp(order, "name") == 0) {
			uint32_t arch = seccomp_arch_resolve_name(word());

			printf("%d\n", seccomp_syscall_resolve_name_arch(arch, word()));
		} else if (strcmp(order, "new") == 0) {
			uint32_t action = strtoul(word(), NULL, 0);

			if (ctx)
				seccomp_release(ctx);
			ctx = seccomp_init(action);
			if (!ctx)
				errx(1, "seccomp_init %#x", action);
			rc = 0;
			bad = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, atoi(word()));
		} else if (strcmp(order, "arch") == 0) {
			bad = seccomp_arch_add(ctx, seccomp_arch_resolve_name(word()));
			if (bad == -17) /* it is there */
				bad = 0;
		} else if (strcmp(order, "only") == 0) {
			bad = seccomp_arch_add(ctx, seccomp_arch_resolve_name(word()));
			if (!bad)
				bad = seccomp_arch_remove(ctx, SCMP_ARCH_NATIVE);
		} else if (strcmp(order, "rule") == 0) {
			bad = rule(ctx);
		} else if (strcmp(order, "end") == 0) {
			if (rc)
				printf("%d\n", rc);
			else
				export(ctx);
		} else {
			errx(1, "order %s", order);
		}
		if (!rc)
			rc = bad;
		fflush(stdout);
	}
	return 0;
}
