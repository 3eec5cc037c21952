package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/image"
	"github.com/orlop-io/orlop/internal/network"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/ociruntime"
	"github.com/orlop-io/orlop/internal/pod"
	"github.com/orlop-io/orlop/internal/server/control"
	"github.com/orlop-io/orlop/internal/server/cri"
	"github.com/orlop-io/orlop/internal/volume"
)

// What the domains need of each other, in each other's terms.

// podOptions gives the pods their providers.
func (h *host) podOptions() pod.Options {
	c := h.config
	driver := cgroup.Driver(c.Cgroup.Driver)
	if driver == "auto" {
		driver = ""
	}
	return pod.Options{
		Root: c.Root, Run: c.Run, Durable: h.durable, Volatile: h.volatile,
		Images: podImages{h.images}, Network: podNetwork{h.network, h.log}, Volumes: podVolumes{h.volumes},
		Keeper:       keeperOptions(c),
		CgroupParent: c.Cgroup.Parent, CgroupDriver: driver,
		Runtimes:   runtimes(c),
		SeccompDir: c.Pod.SeccompDir, CDIDirs: c.Pod.CDIDirs, LogMaxBytes: c.Pod.LogMaxBytes, LogMaxFiles: c.Pod.LogMaxFiles, MaxPIDs: c.Pod.MaxPIDs,
		FirstID: c.Pod.UserNamespaces.FirstID, UserNamespaces: c.Pod.UserNamespaces.Pods,
		Log: h.log.With("domain", "pod"),
	}
}

// runtimes are the runtime handlers that are configured.
func runtimes(c config.Config) map[string]ociruntime.Runtime {
	all := make(map[string]ociruntime.Runtime, len(c.CRI.Runtimes))
	for name, r := range c.CRI.Runtimes {
		all[name] = ociruntime.Runtime{Name: name, Path: r.Path, Root: r.Root, Args: r.Args, Timeout: r.Timeout}
	}
	return all
}

// controlOptions gives the control API what it serves.
func (h *host) controlOptions(ready <-chan struct{}, fallback http.Handler) control.Options {
	c := h.config
	facts := control.Facts{
		Version: version, Instance: c.Instance, Root: c.Root, Run: c.Run, Cgroup: h.pods.Cgroups().String(), StartedAt: time.Now(),
		Warnings: h.network.Warnings(), Logs: filepath.Join(c.Root, "logs"), Containers: filepath.Join(c.Root, "containers"),
	}
	for _, b := range []string{c.Network.IPv4Block, c.Network.IPv6Block} {
		if b != "" {
			facts.Addresses = append(facts.Addresses, b)
		}
	}
	return control.Options{
		Pods: h.pods, Images: h.images, Volumes: h.volumes, Facts: facts, Ready: ready, Fallback: fallback, Watch: h.watch, Log: h.log.With("server", "control"),
		Keeper: h.pods.Keeper,
		UpgradeKeeper: func(ctx context.Context, path string) (string, error) {
			if path == "" {
				path = keeperOptions(c).Binary
			}
			return h.pods.UpgradeKeeper(ctx, path)
		},
	}
}

// criOptions gives the CRI what it serves.
func (h *host) criOptions(ready <-chan struct{}) (cri.Options, error) {
	c := h.config
	groups, err := cgroup.Open(cgroup.Options{Driver: h.podOptions().CgroupDriver})
	if err != nil {
		return cri.Options{}, err
	}
	return cri.Options{
		Pods: h.pods.Driven(), Images: h.images, UsedImages: h.pods.UsedImages, Version: version,
		ImageDir: filepath.Join(c.Root, "image"), ContainerDir: filepath.Join(c.Root, "containers"),
		SystemdCgroups: groups.Layout().Driver == cgroup.Systemd, Streaming: c.CRI.Streaming, StreamingTLS: cri.StreamingTLS(c.CRI.StreamingTLS), MaxSessions: c.CRI.MaxSessions,
		Ready: ready, Watch: h.watch, Log: h.log.With("server", "cri"),
	}, nil
}

// rootsDir is beside the run directory, which nobody but root may search.
func rootsDir(c config.Config) string { return filepath.Clean(c.Run) + "-roots" }

// keeperOptions finds the executables beside this one unless they are configured.
func keeperOptions(c config.Config) keeper.SpawnOptions {
	o := keeper.SpawnOptions{Binary: c.Keeper.Binary, Init: c.Keeper.Init, Dir: filepath.Join(c.Run, "keeper"), Roots: rootsDir(c), LogFile: filepath.Join(c.Root, "keeper.log")}
	if c.Cgroup.Driver != "auto" {
		o.Driver = c.Cgroup.Driver
	}
	self, err := os.Executable()
	if err != nil {
		self = "/usr/bin/orlop"
	}
	if o.Binary == "" {
		o.Binary = filepath.Join(filepath.Dir(self), "orlop-keeper")
	}
	if o.Init == "" {
		o.Init = filepath.Join(filepath.Dir(o.Binary), "orlop-init")
	}
	return o
}

type podImages struct{ *image.Store }

// What a domain does for a pod is a span of what the pod asked it for.

func (i podImages) Find(ctx context.Context, ref string) (_ pod.Image, err error) {
	ctx, span := trace.Start(ctx, "image find")
	defer span.End(&err)
	span.Set("container.image.name", ref)
	img, err := i.Resolve(ctx, ref)
	return pod.Image{ID: img.ID.String(), Config: img.Config}, err
}

func (i podImages) Use(ctx context.Context, ref string) (_ pod.Image, err error) {
	ctx, span := trace.Start(ctx, "image use")
	defer span.End(&err)
	span.Set("container.image.name", ref)
	img, err := i.Store.Use(ctx, ref)
	return pod.Image{ID: img.ID.String(), Config: img.Config}, err
}

func (i podImages) Pull(ctx context.Context, ref string, credentials map[string]pod.Credential) (pod.Image, error) {
	o := image.PullOptions{}
	if name, err := image.ParseName(ref); err == nil {
		if c, ok := credentials[name.Host]; ok {
			o.Auth = &image.Auth{Username: c.Username, Password: c.Password}
		}
	}
	img, err := i.Store.Pull(ctx, ref, o)
	return pod.Image{ID: img.ID.String(), Config: img.Config}, err
}

func (i podImages) Layers(ctx context.Context, id string) (dirs []string, release func(), err error) {
	ctx, span := trace.Start(ctx, "image layers")
	defer span.End(&err)
	span.Set("container.image.id", id)
	d, err := digest.Parse(id)
	if err != nil {
		return nil, nil, errs.New(errs.Internal, "image id %q: %w", id, err)
	}
	if release, err = i.Hold(d); err != nil {
		return nil, nil, err
	}
	if dirs, err = i.LayerDirs(ctx, d); err != nil {
		release()
		return nil, nil, err
	}
	return dirs, release, nil
}

// collectImages removes images where the disk is full, until ctx ends, and tells of
// it by events.
func (h *host) collectImages(ctx context.Context) {
	gc := h.config.Image.GC
	h.images.CollectAlways(ctx, func() func(digest.Digest) bool {
		used := h.pods.UsedImages()
		return func(id digest.Digest) bool { return used[id.String()] }
	}, func(c image.Collection) {
		if len(c.Names) > 0 {
			h.pods.Note(false, "ImagesRemoved", fmt.Sprintf("the disk of %s was %d%% full: removed %s, which were used least, and %d MB with them; it is %d%% full now",
				h.config.Root, c.BeforePercent, strings.Join(c.Names, ", "), c.FreedBytes/1e6, c.AfterPercent))
		}
		if c.Short {
			h.pods.Note(true, "DiskFull", fmt.Sprintf("the disk of %s is %d%% full, above image.gc.lowPercent (%d), and no other image may be removed: they are in use, pinned, made or imported here, or were used within %s",
				h.config.Root, c.AfterPercent, gc.LowPercent, gc.MinAge))
		}
	})
}

type podNetwork struct {
	*network.Network
	log *slog.Logger
}

func (n podNetwork) Attach(ctx context.Context, id pod.ID, netns string, ports []pod.PortMapping) (ips []netip.Addr, err error) {
	ctx, span := trace.Start(ctx, "network attach")
	defer span.End(&err)
	r := network.Request{PodID: string(id), Netns: netns}
	for _, p := range ports {
		r.Ports = append(r.Ports, network.PortMapping{HostIP: p.HostIP, HostPort: p.HostPort, PodPort: p.Port, Protocol: network.Protocol(p.Protocol)})
	}
	a, err := n.Network.Attach(ctx, r)
	if err != nil {
		return nil, err
	}
	for _, p := range a.Addresses {
		ips = append(ips, p.Addr())
	}
	return ips, nil
}

func (n podNetwork) Detach(ctx context.Context, id pod.ID) (err error) {
	ctx, span := trace.Start(ctx, "network detach")
	defer span.End(&err)
	return n.Network.Detach(ctx, string(id))
}

func (n podNetwork) ResolvConf(policy string, d pod.DNS) ([]byte, error) {
	host, err := network.HostResolvConf()
	if err != nil {
		return nil, err
	}
	conf, warnings, err := network.ResolvConf(network.DNS{Policy: policy, Servers: d.Servers, Searches: d.Searches, Options: d.Options}, host)
	for _, w := range warnings {
		n.log.Warn("resolver configuration", "what", w)
	}
	return conf, err
}

func (n podNetwork) Hosts(f pod.HostsFile) ([]byte, error) {
	h := network.HostsFile{Hostname: f.Hostname, Domain: f.Domain, Addresses: f.Addresses, Base: f.Base}
	for _, a := range f.Aliases {
		h.Aliases = append(h.Aliases, network.HostAlias{IP: a.IP, Names: a.Names})
	}
	return network.Hosts(h)
}

type podVolumes struct{ *volume.Volumes }

func (v podVolumes) Publish(ctx context.Context, namespace, claim string, id pod.ID, readOnly bool) (path string, block bool, err error) {
	ctx, span := trace.Start(ctx, "volume publish")
	defer span.End(&err)
	span.Set("k8s.namespace.name", namespace)
	span.Set("k8s.persistentvolumeclaim.name", claim)
	path, err = v.Volumes.Publish(ctx, namespace, claim, string(id), readOnly)
	if err != nil {
		return "", false, err
	}
	c, err := v.Claim(ctx, namespace, claim)
	return path, c.Mode == volume.Block, err
}

func (v podVolumes) PublishScratch(ctx context.Context, id pod.ID, name string, sizeBytes int64) (path string, err error) {
	ctx, span := trace.Start(ctx, "volume publish scratch")
	defer span.End(&err)
	span.Set("k8s.volume.name", name)
	return v.Volumes.PublishScratch(ctx, string(id), name, sizeBytes)
}

func (v podVolumes) UnpublishAll(ctx context.Context, id pod.ID) (err error) {
	ctx, span := trace.Start(ctx, "volume unpublish all")
	defer span.End(&err)
	return v.Volumes.UnpublishAll(ctx, string(id))
}
