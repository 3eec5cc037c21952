package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
)

// podman is Debian's podman with runc, on storage of its own. Its pods are in the
// host's network namespace: Debian's podman brings no network plug-in that every
// kernel can run, so its pod start is flattered.
type podman struct {
	dir, registry string
	group         string
	enter         func(int) error
	leave         func()
}

func (p *podman) Name() string  { return "podman + runc (host network)" }
func (p *podman) Group() string { return p.group }

func (p *podman) podman(ctx context.Context, args ...string) (string, error) {
	base := []string{"-c", `echo $$ >"$0" && exec "$@"`, p.procs(), "podman",
		"--root", p.dir + "/root", "--runroot", p.dir + "/run", "--tmpdir", p.dir + "/tmp", "--runtime", "runc",
		"--cgroup-manager", "cgroupfs", "--events-backend", "none"}
	return run(ctx, "/bin/sh", append(base, args...)...)
}

// procs is the file by which a process enters the measured group.
func (p *podman) procs() string {
	for _, root := range []string{"/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup"} {
		if f := root + p.group + "/cgroup.procs"; fileExists(f) {
			return f
		}
	}
	return "/dev/null"
}

func fileExists(path string) bool { _, err := os.Stat(path); return err == nil }

func (p *podman) Start(ctx context.Context) (err error) {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	if p.group, p.enter, p.leave, err = measureGroup("orlbench-podman"); err != nil {
		return err
	}
	return p.Pull(ctx, p.registry+"/bench/idle:1")
}

func (p *podman) Stop() {
	ctx := context.Background()
	p.podman(ctx, "rm", "-f", "-t", "0", "-a")
	unmountBelow(p.dir)
	os.RemoveAll(p.dir)
	if p.leave != nil {
		p.leave()
	}
	for _, h := range []string{"memory", "cpu", "cpuacct", "cpuset", "devices", "freezer", "blkio", "pids", "systemd", "unified"} {
		removeGroups("/sys/fs/cgroup/" + h + "/orlbench-podman")
	}
}

func (p *podman) StartPod(ctx context.Context, name string) error {
	_, err := p.podman(ctx, "run", "-d", "--name", name, "--network", "host", "--memory", "64m", "--cgroup-parent", p.group,
		"--log-driver", "k8s-file", "--tls-verify=false", p.registry+"/bench/idle:1")
	return err
}

func (p *podman) RemovePod(ctx context.Context, name string) error {
	_, err := p.podman(ctx, "rm", "-f", "-t", "0", name)
	return err
}

func (p *podman) Pull(ctx context.Context, ref string) error {
	_, err := p.podman(ctx, "pull", "-q", "--tls-verify=false", ref)
	return err
}

func (p *podman) Drop(ctx context.Context, ref string) error {
	_, err := p.podman(ctx, "rmi", "-f", ref)
	return err
}

func (p *podman) Own(pid int, cmdline string) bool {
	return strings.HasPrefix(filepath.Base(cmdline), "conmon") || strings.Contains(cmdline, "conmon") && strings.Contains(cmdline, p.dir)
}
