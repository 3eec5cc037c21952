package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"time"
)

// runc starts single containers by the OCI command line.
type runc struct {
	dir   string // state and bundles
	root  string // an unpacked root with /bin/true
	group string
	enter string // cgroup.procs of the measured group
	leave func()
}

func (r *runc) Name() string  { return "runc" }
func (r *runc) Group() string { return r.group }

func (r *runc) Start(context.Context) (err error) {
	r.group, _, r.leave, err = measureGroup("orlbench-runc")
	for _, root := range []string{"/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup"} {
		if f := root + r.group + "/cgroup.procs"; r.enter == "" && fileExists(f) {
			r.enter = f
		}
	}
	return err
}

func (r *runc) Stop() {
	r.leave()
	os.RemoveAll(r.dir)
}

func (r *runc) Run(ctx context.Context, id string) (started, whole time.Duration, err error) {
	bundle := filepath.Join(r.dir, id)
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(bundle, d), 0o700); err != nil {
			return 0, 0, err
		}
	}
	defer os.RemoveAll(bundle)
	spec := trueSpec(r.group+"/"+id, bundle+"/root")
	raw, err := json.Marshal(spec)
	if err != nil {
		return 0, 0, err
	}
	if err := os.WriteFile(bundle+"/config.json", raw, 0o600); err != nil {
		return 0, 0, err
	}
	sh := func(args ...string) error {
		_, err := run(ctx, "/bin/sh", append([]string{"-c", `echo $$ >"$0" && exec runc --root "$@"`, r.enter, r.dir + "/state"}, args...)...)
		return err
	}
	begin := time.Now()
	if err := mountOverlay(r.root, bundle); err != nil {
		return 0, 0, err
	}
	defer unmountBelow(bundle)
	if err := sh("create", "--bundle", bundle, id); err != nil {
		return 0, 0, err
	}
	if err := sh("start", id); err != nil {
		return 0, 0, err
	}
	started = time.Since(begin)
	err = until(ctx, func() error { return sh("delete", id) })
	return started, time.Since(begin), err
}
