package pod

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/ociruntime"
)

// DefaultHandler is the keeper's own executor, which "" means too.
const DefaultHandler = "default"

// Handler is a runtime handler: who makes the containers of the pods that ask for it.
type Handler struct {
	Name string
	// RecursiveReadOnly: mounts may be read-only with everything below.
	RecursiveReadOnly bool
	// UserNamespaces: pods may have one of their own.
	UserNamespaces bool
}

// handlers are the runtime handlers of this host.
type handlers struct {
	runtimes map[string]ociruntime.Runtime
	log      *slog.Logger

	mu    sync.Mutex
	known map[string]knownFeatures
}

// knownFeatures are what a runtime has said, as long as it is the same file.
type knownFeatures struct {
	ociruntime.Features
	file  string
	until time.Time // zero: no end
}

// askAgain is the pause after a runtime that could not be asked.
const askAgain = time.Minute

// runtime returns the handler's runtime, nil for the default one.
func (h *handlers) runtime(name string) (*ociruntime.Runtime, error) {
	if name == "" || name == DefaultHandler {
		return nil, nil
	}
	r, ok := h.runtimes[name]
	if !ok {
		return nil, errs.New(errs.Invalid, "there is no runtime handler %q; this host has %s (cri.runtimes in its configuration adds some)", name, strings.Join(h.names(), ", "))
	}
	return &r, nil
}

func (h *handlers) names() []string {
	return append([]string{DefaultHandler}, slices.Sorted(maps.Keys(h.runtimes))...)
}

// features of the runtime are asked of itself, once for each version of its file.
func (h *handlers) features(ctx context.Context, r *ociruntime.Runtime) ociruntime.Features {
	file := stamp(r.Path)
	h.mu.Lock()
	k, ok := h.known[r.Name]
	h.mu.Unlock()
	if ok && k.file == file && (k.until.IsZero() || time.Now().Before(k.until)) {
		return k.Features
	}
	now := knownFeatures{file: file}
	var err error
	switch now.Features, err = r.Features(ctx); {
	case ctx.Err() != nil:
		return now.Features
	case errs.KindOf(err) == errs.Unsupported:
		h.log.Info("a runtime does not tell its features; it is taken to have none", "handler", r.Name, "error", err)
	case err != nil:
		h.log.Error("a runtime handler is of no use", "handler", r.Name, "error", err)
		now.until = time.Now().Add(askAgain)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known == nil {
		h.known = make(map[string]knownFeatures)
	}
	h.known[r.Name] = now
	return now.Features
}

// recursive tells whether mounts may be read-only with everything below.
func (h *handlers) recursive(ctx context.Context, name string) bool {
	r, err := h.runtime(name)
	return err == nil && (r == nil || h.features(ctx, r).RecursiveReadOnly)
}

// stamp changes when a file is replaced.
func stamp(path string) string {
	fi, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fi.ModTime().String()
	}
	return itoa(int64(st.Ino)) + " " + itoa(fi.Size()) + " " + fi.ModTime().String()
}

// Handlers returns the host's runtime handlers, the default one first.
func (d *Driven) Handlers(ctx context.Context) []Handler {
	h := &d.p.handlers
	names := h.names()
	list := make([]Handler, len(names))
	list[0] = Handler{DefaultHandler, true, true}
	var wg sync.WaitGroup
	for i, name := range names[1:] {
		wg.Go(func() {
			r := h.runtimes[name]
			f := h.features(ctx, &r)
			list[1+i] = Handler{Name: name, RecursiveReadOnly: f.RecursiveReadOnly, UserNamespaces: f.IDMappedMounts}
		})
	}
	wg.Wait()
	return list
}

// CheckHandler returns errs.Invalid for a name that is no handler's; "" is the default.
func (d *Driven) CheckHandler(name string) error {
	_, err := d.p.handlers.runtime(name)
	return err
}

// admit refuses a pod that its handler cannot have. Volumes of pods in user namespaces are id-mapped, so
// theirs are those that can do that.
func (h *handlers) admit(ctx context.Context, spec *Spec) error {
	r, err := h.runtime(spec.Handler)
	if err != nil || r == nil || !spec.OwnUsers && spec.Users == nil {
		return err
	}
	if !h.features(ctx, r).IDMappedMounts {
		return errs.New(errs.Unsupported, "runtime handler %s has no id-mapped mounts ('%s features' tells), which pods in user namespaces of their own need; use another handler, a newer runtime (runc has them since 1.2), or hostUsers: true", r.Name, r.Path)
	}
	return nil
}

// runtimeFor returns who makes the container, nil for the keeper's own executor, and refuses mounts that
// another would misunderstand.
func (h *handlers) runtimeFor(ctx context.Context, spec *Spec, mounts []specs.Mount) (*ociruntime.Runtime, error) {
	r, err := h.runtime(spec.Handler)
	if err != nil || r == nil {
		return nil, err
	}
	for _, m := range mounts {
		recursive, mapped := slices.Contains(m.Options, "rro"), len(m.UIDMappings)+len(m.GIDMappings) > 0
		if !recursive && !mapped {
			continue
		}
		f := h.features(ctx, r)
		if recursive && !f.RecursiveReadOnly {
			return nil, errs.New(errs.Unsupported, "mount on %s: runtime handler %s has no recursive read-only mounts", m.Destination, r.Name)
		}
		if mapped && !f.IDMappedMounts {
			return nil, errs.New(errs.Unsupported, "mount on %s: runtime handler %s has no id-mapped mounts", m.Destination, r.Name)
		}
	}
	return r, nil
}
