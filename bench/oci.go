package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ociCommand is an OCI runtime by its command line: runc, crun, orlop-oci. The engine's
// part, mounting the root, is done here and counted.
type ociCommand struct {
	name, program string
	dir           string // state and bundles
	root          string // an unpacked root with /bin/true
	group         group
}

func (r *ociCommand) Name() string             { return r.name }
func (r *ociCommand) Version() (string, error) { return version(r.program, "--version") }
func (r *ociCommand) Group() group             { return r.group }

func (r *ociCommand) Start(context.Context) (err error) {
	if r.group, err = newGroup(r.name); err != nil {
		return err
	}
	return os.MkdirAll(r.dir, 0o700)
}

// bundle makes what the engine would. Only mounting the root is left to do.
func (r *ociCommand) bundle(id string, argv ...string) (dir string, err error) {
	dir = filepath.Join(r.dir, id)
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return "", err
		}
	}
	spec := containerSpec(argv...)
	spec.Linux.CgroupsPath = r.group.pods() + "/" + id
	spec.Root = &specs.Root{Path: dir + "/root"}
	raw, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(dir+"/config.json", raw, 0o600)
}

func (r *ociCommand) command(ctx context.Context, args ...string) error {
	return r.group.run(ctx, r.program, append([]string{"--root", r.dir + "/state"}, args...)...)
}

func (r *ociCommand) Prepare(id string) (err error) {
	_, err = r.bundle(id, "/bin/true")
	return err
}

func (r *ociCommand) Run(ctx context.Context, id string) error {
	dir := filepath.Join(r.dir, id)
	unmount, err := mountOverlay(r.root, dir)
	if err != nil {
		return err
	}
	defer unmount()
	return r.command(ctx, "run", "--bundle", dir, id)
}

func (r *ociCommand) Remove(id string) error { return os.RemoveAll(filepath.Join(r.dir, id)) }

func (r *ociCommand) Hold(ctx context.Context, id string) (func() error, error) {
	dir, err := r.bundle(id, "/bin/sleep", workloadMark)
	if err != nil {
		return nil, err
	}
	unmount, err := mountOverlay(r.root, dir)
	if err != nil {
		return nil, err
	}
	release := func() error {
		defer os.RemoveAll(dir)
		defer unmount()
		return r.command(ctx, "delete", "--force", id)
	}
	if err := r.command(ctx, "run", "--detach", "--bundle", dir, id); err != nil {
		unmount()
		return nil, err
	}
	return release, nil
}

func (r *ociCommand) Exec(ctx context.Context, id string) error {
	return r.command(ctx, "exec", id, "/bin/true")
}
