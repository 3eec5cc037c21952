// Package config reads the daemon's one configuration file.
//
// Every setting has a default that works; an empty or missing file is a complete
// configuration. Decoding is strict: an unknown key, a wrong type or a duplicate
// key is an error that names its line. Validate finds everything that is wrong
// at once.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"go.yaml.in/yaml/v3"
)

// DefaultPath is read where no --config is given and the file exists.
const DefaultPath = "/etc/orlop/config.yaml"

// Config is the whole configuration. Its YAML comments are the reference: `orlop
// config show` prints the file that stands for the running settings.
type Config struct {
	// Instance names every kernel object that the daemon makes (firewall table,
	// interfaces, cgroup parent), so that two daemons can live on one host.
	Instance string `yaml:"instance"`
	// Root holds what outlives the machine's run: images, volumes, manifests, logs.
	Root string `yaml:"root"`
	// Run is on tmpfs and holds what dies with it: sockets, namespaces, state of containers.
	Run string `yaml:"run"`

	Log     Log     `yaml:"log"`
	Control Control `yaml:"control"`
	CRI     CRI     `yaml:"cri"`
	Metrics Metrics `yaml:"metrics"`
	Tracing Tracing `yaml:"tracing"`
	Keeper  Keeper  `yaml:"keeper"`
	Cgroup  Cgroup  `yaml:"cgroup"`
	Image   Image   `yaml:"image"`
	Network Network `yaml:"network"`
	Volume  Volume  `yaml:"volume"`
	Pod     Pod     `yaml:"pod"`
}

// Log sets the daemon's own log on standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug, info, warn, error
	Format string `yaml:"format"` // text, json
}

// Control is the control API's socket.
type Control struct {
	Socket string `yaml:"socket"` // "": <run>/orlop.sock
	// Group may use the socket besides root; whoever may use it is root on this
	// host. "": nobody.
	Group string `yaml:"group"`
}

// CRI serves the Kubernetes Container Runtime Interface.
type CRI struct {
	Socket string `yaml:"socket"` // "": <run>/cri.sock; "off" turns it off
	// Streaming is where sessions of exec, attach and port-forward are served; whoever
	// has a session's address may use it. Port 0 is a free one.
	Streaming    string       `yaml:"streaming"`
	StreamingTLS StreamingTLS `yaml:"streamingTLS"`
	// MaxSessions is how many of them may be open at a time. Each takes about 0.65 MiB.
	MaxSessions int `yaml:"maxSessions"`
	// Runtimes are runtime handlers besides default, which is the keeper's own executor: OCI
	// runtimes by the names that pods ask for them with.
	Runtimes map[string]Runtime `yaml:"runtimes"`
	NRI      NRI                `yaml:"nri"`
}

// StreamingTLS are PEM files, read anew for each connection.
type StreamingTLS struct {
	CertFile string `yaml:"certFile"` // "": no TLS
	KeyFile  string `yaml:"keyFile"`
	// ClientCAFile has the authorities of clients' certificates; "": none is asked for.
	ClientCAFile string `yaml:"clientCAFile"`
}

// Runtime is an OCI runtime that makes the containers of the pods that ask for it.
type Runtime struct {
	Path string   `yaml:"path"` // of the executable: runc, crun, youki, runsc
	Root string   `yaml:"root"` // directory of its state; "": <run>/runtimes/<name>
	Args []string `yaml:"args"` // before the command, like --debug
	// Timeout is how long one of its commands may take before it is killed.
	Timeout time.Duration `yaml:"timeout"` // 0: 30s
}

// NRI lets plugins of the Node Resource Interface see, adjust and refuse the containers of
// the CRI. Whoever may use the socket is root on this host.
type NRI struct {
	Socket string `yaml:"socket"` // "off", or a path; the customary one is /var/run/nri/nri.sock
	// Timeout is how long a plugin may take for a request before it is disconnected.
	Timeout time.Duration `yaml:"timeout"`
}

// Metrics serves /metrics, /healthz and /readyz over HTTP.
type Metrics struct {
	Listen string `yaml:"listen"` // host:port; "off" turns it off (the control socket serves the same paths)
}

// Tracing sends what requests did, step by step and with times, to a collector of
// OpenTelemetry.
type Tracing struct {
	// Endpoint is the collector's URL for OTLP over HTTP, like http://127.0.0.1:4318; "off"
	// turns it off. Without a path /v1/traces is asked.
	Endpoint string `yaml:"endpoint"`
	CAFile   string `yaml:"caFile"` // PEM, besides the system's
	// SamplingRatio is the share, 0 to 1, of the traces that begin here that are sent.
	// Traces that a client has begun (kubelet) are sent as it has decided.
	SamplingRatio float64 `yaml:"samplingRatio"`
}

// Keeper finds the executables that run containers.
type Keeper struct {
	Binary string `yaml:"binary"` // "": orlop-keeper beside the daemon's own executable
	Init   string `yaml:"init"`   // "": orlop-init beside the keeper
}

// Cgroup says where containers' control groups are made.
type Cgroup struct {
	Driver string `yaml:"driver"` // auto, cgroupfs, systemd
	Parent string `yaml:"parent"` // "": /<instance>
}

// Image sets where images come from and what they may cost.
type Image struct {
	MaxLayerBytes int64      `yaml:"maxLayerBytes"` // unpacked size of one layer
	MaxImageBytes int64      `yaml:"maxImageBytes"` // unpacked size of all layers
	MaxFiles      int64      `yaml:"maxFiles"`      // entries in one image
	Parallel      int        `yaml:"parallel"`      // layers fetched at once
	Registries    []Registry `yaml:"registries"`
	// HostsDirs have a directory for each registry host with its mirrors and
	// certificates in the form of containerd (hosts.toml) or Docker (*.crt). The first
	// one that has the host is taken. They are read at every pull.
	HostsDirs    []string    `yaml:"hostsDirs"`
	DockerConfig string      `yaml:"dockerConfig"` // "": $DOCKER_CONFIG, else /root/.docker
	Policy       ImagePolicy `yaml:"policy"`
	GC           ImageGC     `yaml:"gc"`
}

// ImagePolicy says which images may be pulled and run.
type ImagePolicy struct {
	Default string       `yaml:"default"` // where no rule fits: accept, reject
	Rules   []PolicyRule `yaml:"rules"`
}

// PolicyRule is for the images of a registry or of a path in it; the longest prefix
// decides.
type PolicyRule struct {
	Prefix string `yaml:"prefix"` // host, or host/path in whole components: ghcr.io/example
	Action string `yaml:"action"` // accept, reject, signedBy
	// Keys are public keys, one of which must have signed: files' paths, or PEM.
	Keys []string `yaml:"keys,omitempty"`
	// SignedAs is what signatures name in the prefix's place, where images are copied to
	// another registry; "*": whatever they name. "": the prefix.
	SignedAs string `yaml:"signedAs,omitempty"`
}

// ImageGC removes images that are used least where the disk is full.
type ImageGC struct {
	Enabled bool `yaml:"enabled"`
	// HighPercent of the filesystem in use (bytes or inodes) begins a collection, which
	// ends at LowPercent.
	HighPercent int `yaml:"highPercent"`
	LowPercent  int `yaml:"lowPercent"`
	// MinAge is how long an image stays after it was pulled or used last.
	MinAge   time.Duration `yaml:"minAge"`
	Interval time.Duration `yaml:"interval"`
}

// Registry is one registry host's settings.
type Registry struct {
	Host       string   `yaml:"host"`       // as in image names: docker.io, ghcr.io, localhost:5000
	Mirrors    []string `yaml:"mirrors"`    // URLs (or hosts) asked first, in order
	PlainHTTP  bool     `yaml:"plainHTTP"`  // loopback hosts are plain HTTP anyway
	CAFile     string   `yaml:"caFile"`     // PEM, besides the system's
	SkipVerify bool     `yaml:"skipVerify"` // of TLS certificates
}

// Network sets addresses and the way out.
type Network struct {
	IPv4Block  string `yaml:"ipv4Block"` // of this node's pods; "": no IPv4
	IPv6Block  string `yaml:"ipv6Block"` // "": no IPv6
	MTU        int    `yaml:"mtu"`       // 0: the default route's
	Masquerade bool   `yaml:"masquerade"`
}

// Volume sets the pool of volumes.
type Volume struct {
	// PoolSizeBytes is the size of the pool file where the disk has no reflink.
	// It is sparse: it takes the space that is written. 0: 80 % of the disk.
	PoolSizeBytes int64 `yaml:"poolSizeBytes"`
	// ReserveBytes of the host's disk are never promised to volumes.
	ReserveBytes int64 `yaml:"reserveBytes"`
	// Overcommit is how many times the pool's space may be promised.
	Overcommit float64 `yaml:"overcommit"`
}

// Pod sets defaults for containers.
type Pod struct {
	SeccompDir string `yaml:"seccompDir"` // of Localhost profiles; "": <root>/seccomp
	// CDIDirs are where drivers write what their devices are (Container Device Interface).
	CDIDirs     []string `yaml:"cdiDirs"`
	LogMaxBytes int64    `yaml:"logMaxBytes"` // of one log file
	LogMaxFiles int      `yaml:"logMaxFiles"` // per container, the current one included
	MaxPIDs     int64    `yaml:"maxPIDs"`     // per container; 0: no limit

	UserNamespaces UserNamespaces `yaml:"userNamespaces"`
}

// UserNamespaces are the host's ids for pods with hostUsers: false, 65536 each.
type UserNamespaces struct {
	FirstID uint32 `yaml:"firstID"`
	Pods    int    `yaml:"pods"` // how many there can be at once
}

// Default returns the embedded defaults.
func Default() Config {
	return Config{
		Instance: "orlop",
		Root:     "/var/lib/orlop",
		Run:      "/run/orlop",
		Log:      Log{Level: "info", Format: "text"},
		CRI:      CRI{Streaming: "127.0.0.1:0", MaxSessions: 512, NRI: NRI{Socket: "off", Timeout: 5 * time.Second}},
		Metrics:  Metrics{Listen: "127.0.0.1:9464"},
		Tracing:  Tracing{Endpoint: "off", SamplingRatio: 1},
		Cgroup:   Cgroup{Driver: "auto"},
		Image: Image{
			MaxLayerBytes: 32 << 30,
			MaxImageBytes: 64 << 30,
			MaxFiles:      4_000_000,
			Parallel:      4,
			HostsDirs:     []string{"/etc/orlop/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"},
			Policy:        ImagePolicy{Default: "accept"},
			GC:            ImageGC{Enabled: true, HighPercent: 90, LowPercent: 80, MinAge: time.Hour, Interval: 5 * time.Minute},
		},
		Network: Network{IPv4Block: "10.115.0.0/16", IPv6Block: "fd6f:726c:6f70::/64", Masquerade: true},
		Volume:  Volume{ReserveBytes: 1 << 30, Overcommit: 1},
		Pod: Pod{CDIDirs: []string{"/etc/cdi", "/var/run/cdi"}, LogMaxBytes: 10 << 20, LogMaxFiles: 5, MaxPIDs: 32768,
			// Ids that no allocation of the field uses (systemd's "Users, Groups, UIDs and GIDs"), and still below 2^31.
			UserNamespaces: UserNamespaces{FirstID: 0x7000_0000, Pods: 4096}},
	}
}

// Load reads the file over the defaults and validates the result. A path of ""
// means DefaultPath if it exists, else the defaults alone; a path that is given
// must exist.
func Load(path string) (Config, error) {
	explicit := path != ""
	if !explicit {
		path = DefaultPath
	}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && !explicit:
		data = nil
	case err != nil:
		return Config{}, errs.New(errs.Invalid, "read configuration: %w", err)
	}
	return Parse(path, data)
}

// Parse decodes data over the defaults; path is for messages only.
func Parse(path string, data []byte) (Config, error) {
	c := Default()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, errs.New(errs.Invalid, "%s: %s\nthe settings and their defaults: orlop config show", path, explain(err))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, errs.New(errs.Invalid, "%s: more than one YAML document; keep one", path)
	}
	c.fill()
	if err := c.Validate(); err != nil {
		return Config{}, errs.New(errs.Invalid, "%s: %w", path, err)
	}
	return c, nil
}

// goType takes the Go type's name out of the library's messages.
var goType = regexp.MustCompile(`field (\S+) not found in type config\.(\w+)`)

func explain(err error) string {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	msg = strings.ReplaceAll(msg, "unmarshal errors:\n  ", "")
	return goType.ReplaceAllStringFunc(msg, func(s string) string {
		m := goType.FindStringSubmatch(s)
		if m[2] == "Config" {
			return fmt.Sprintf("unknown key %q", m[1])
		}
		return fmt.Sprintf("unknown key %q under %q", m[1], strings.ToLower(m[2][:1])+m[2][1:])
	})
}

// fill derives what was left to be derived from other settings.
func (c *Config) fill() {
	if c.Control.Socket == "" {
		c.Control.Socket = filepath.Join(c.Run, "orlop.sock")
	}
	if c.CRI.Socket == "" {
		c.CRI.Socket = filepath.Join(c.Run, "cri.sock")
	}
	if c.Cgroup.Parent == "" {
		c.Cgroup.Parent = "/" + c.Instance
	}
	for name, r := range c.CRI.Runtimes {
		if r.Root == "" {
			r.Root = filepath.Join(c.Run, "runtimes", name)
		}
		if r.Timeout == 0 {
			r.Timeout = 30 * time.Second
		}
		c.CRI.Runtimes[name] = r
	}
	if c.Pod.SeccompDir == "" {
		c.Pod.SeccompDir = filepath.Join(c.Root, "seccomp")
	}
}

// handlerName is what Kubernetes lets a RuntimeClass name: a DNS label.
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// instanceName keeps what interface, table and cgroup names allow.
var instanceName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)

// Validate returns everything that is wrong, one line each.
func (c *Config) Validate() error {
	var bad []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			bad = append(bad, fmt.Errorf(format, args...))
		}
	}
	oneOf := func(name, v string, of ...string) {
		for _, o := range of {
			if v == o {
				return
			}
		}
		check(false, "%s: %q is not one of %s", name, v, strings.Join(of, ", "))
	}
	check(instanceName.MatchString(c.Instance), "instance: %q must be a lower-case name of at most 31 letters, digits and dashes", c.Instance)
	check(filepath.IsAbs(c.Root), "root: %q must be an absolute path", c.Root)
	check(filepath.IsAbs(c.Run), "run: %q must be an absolute path", c.Run)
	// sockaddr_un.sun_path holds 108 bytes, and the keeper's socket lies below run.
	check(len(c.Run) <= 70, "run: %q is too long for the sockets below it (70 bytes at most)", c.Run)
	socket := func(name, path string) {
		check(len(path) < 104, "%s: %q is longer than a socket path may be (103 bytes)", name, path)
		check(filepath.IsAbs(path), "%s: %q must be an absolute path", name, path)
	}
	address := func(name, s string) {
		_, port, err := net.SplitHostPort(s)
		n, perr := strconv.ParseUint(port, 10, 16)
		check(err == nil && perr == nil && n <= 65535, "%s: %q must be host:port", name, s)
	}
	socket("control.socket", c.Control.Socket)
	if c.CRI.Socket != "off" {
		socket("cri.socket", c.CRI.Socket)
	}
	address("cri.streaming", c.CRI.Streaming)
	t := c.CRI.StreamingTLS
	check((t.CertFile == "") == (t.KeyFile == ""), "cri.streamingTLS: certFile and keyFile go together")
	check(t.ClientCAFile == "" || t.CertFile != "", "cri.streamingTLS.clientCAFile: it needs certFile and keyFile")
	for _, f := range []string{t.CertFile, t.KeyFile, t.ClientCAFile} {
		check(f == "" || filepath.IsAbs(f), "cri.streamingTLS: %q must be an absolute path", f)
	}
	for _, name := range slices.Sorted(maps.Keys(c.CRI.Runtimes)) {
		r, at := c.CRI.Runtimes[name], "cri.runtimes."+name
		check(handlerName.MatchString(name), "cri.runtimes: %q must be a lower-case name of at most 63 letters, digits and dashes", name)
		check(name != "default", "cri.runtimes: default is the keeper's own executor; choose another name")
		check(filepath.IsAbs(r.Path), "%s.path: %q must be an absolute path", at, r.Path)
		check(filepath.IsAbs(r.Root) && filepath.Clean(r.Root) == r.Root && r.Root != "/", "%s.root: %q must be a clean absolute path", at, r.Root)
		check(r.Timeout >= time.Second && r.Timeout <= time.Minute, "%s.timeout: must be 1s to 1m", at)
		for _, other := range slices.Sorted(maps.Keys(c.CRI.Runtimes)) {
			check(other >= name || c.CRI.Runtimes[other].Root != r.Root, "%s.root: %s is that of %s too; each has its own", at, r.Root, other)
		}
	}
	check(c.CRI.MaxSessions >= 1 && c.CRI.MaxSessions <= 100_000, "cri.maxSessions: must be 1 to 100000")
	for _, d := range c.Pod.CDIDirs {
		check(filepath.IsAbs(d), "pod.cdiDirs: %q must be an absolute path", d)
	}
	users := c.Pod.UserNamespaces
	check(users.FirstID >= 1<<16, "pod.userNamespaces.firstID: must be %d at least; ids below are the host's", 1<<16)
	check(users.Pods >= 0 && uint64(users.FirstID)+uint64(max(0, users.Pods))<<16 <= math.MaxUint32, "pod.userNamespaces.pods: %d times 65536 ids from %d on are more than there are", users.Pods, users.FirstID)
	if c.CRI.NRI.Socket != "off" {
		socket("cri.nri.socket", c.CRI.NRI.Socket)
		check(c.CRI.Socket != "off", "cri.nri.socket: plugins act on the pods of the CRI, which cri.socket turns off")
	}
	check(c.CRI.NRI.Timeout >= 100*time.Millisecond && c.CRI.NRI.Timeout <= time.Minute, "cri.nri.timeout: must be 100ms to 1m")
	oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf("log.format", c.Log.Format, "text", "json")
	oneOf("cgroup.driver", c.Cgroup.Driver, "auto", "cgroupfs", "systemd")
	check(strings.HasPrefix(c.Cgroup.Parent, "/") && filepath.Clean(c.Cgroup.Parent) == c.Cgroup.Parent && c.Cgroup.Parent != "/",
		"cgroup.parent: %q must be a clean absolute path below the cgroup root", c.Cgroup.Parent)
	if c.Metrics.Listen != "off" {
		address("metrics.listen", c.Metrics.Listen)
	}
	if c.Tracing.Endpoint != "off" {
		u, err := url.Parse(c.Tracing.Endpoint)
		check(err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "",
			"tracing.endpoint: %q must be off, or a URL like http://127.0.0.1:4318", c.Tracing.Endpoint)
	}
	check(c.Tracing.CAFile == "" || filepath.IsAbs(c.Tracing.CAFile), "tracing.caFile: %q must be an absolute path", c.Tracing.CAFile)
	check(c.Tracing.SamplingRatio >= 0 && c.Tracing.SamplingRatio <= 1, "tracing.samplingRatio: must be 0 to 1")
	check(c.Image.MaxLayerBytes > 0, "image.maxLayerBytes: must be above 0")
	check(c.Image.MaxImageBytes > 0, "image.maxImageBytes: must be above 0")
	check(c.Image.MaxFiles > 0, "image.maxFiles: must be above 0")
	check(c.Image.Parallel >= 1 && c.Image.Parallel <= 64, "image.parallel: must be 1 to 64")
	for _, d := range c.Image.HostsDirs {
		check(filepath.IsAbs(d), "image.hostsDirs: %q must be an absolute path", d)
	}
	oneOf("image.policy.default", c.Image.Policy.Default, "accept", "reject")
	for i, r := range c.Image.Policy.Rules {
		at := fmt.Sprintf("image.policy.rules[%d]", i)
		host, path, _ := strings.Cut(r.Prefix, "/")
		check((strings.ContainsAny(host, ".:") || host == "localhost") && !strings.ContainsAny(r.Prefix, "@* ") && !strings.Contains(path, ":") && !strings.HasPrefix(path, "/"),
			"%s.prefix: %q must be a registry host, or a host and a path, without a tag: ghcr.io/example, docker.io/library", at, r.Prefix)
		oneOf(at+".action", r.Action, "accept", "reject", "signedBy")
		if r.Action == "signedBy" {
			check(len(r.Keys) > 0, "%s.keys: signedBy needs at least one public key", at)
		} else {
			check(len(r.Keys) == 0 && r.SignedAs == "", "%s: keys and signedAs belong to signedBy", at)
		}
	}
	gc := c.Image.GC
	check(gc.LowPercent >= 1 && gc.LowPercent < gc.HighPercent && gc.HighPercent <= 99, "image.gc: lowPercent must be at least 1 and below highPercent, which must be at most 99")
	check(gc.MinAge >= 0, "image.gc.minAge: must not be negative")
	check(gc.Interval >= time.Second && gc.Interval <= 24*time.Hour, "image.gc.interval: must be 1s to 24h")
	for i, r := range c.Image.Registries {
		check(r.Host != "", "image.registries[%d].host: is missing", i)
	}
	block := func(name, s string, is4 bool, minBits, maxBits int) {
		if s == "" {
			return
		}
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			check(false, "network.%s: %q is not an address block like 10.115.0.0/16", name, s)
		case p.Addr().Is4() != is4:
			check(false, "network.%s: %q is of the other address family", name, s)
		case p.Masked() != p:
			check(false, "network.%s: %q has host bits set; did you mean %s?", name, s, p.Masked())
		case p.Bits() < minBits || p.Bits() > maxBits:
			check(false, "network.%s: the prefix length of %q must be %d to %d", name, s, minBits, maxBits)
		}
	}
	block("ipv4Block", c.Network.IPv4Block, true, 8, 28)
	block("ipv6Block", c.Network.IPv6Block, false, 32, 120)
	check(c.Network.IPv4Block != "" || c.Network.IPv6Block != "", "network: ipv4Block and ipv6Block are both empty; pods need an address")
	check(c.Network.MTU == 0 || c.Network.MTU >= 1280 && c.Network.MTU <= 65535, "network.mtu: must be 0 or 1280 to 65535")
	check(c.Volume.PoolSizeBytes == 0 || c.Volume.PoolSizeBytes >= 512<<20, "volume.poolSizeBytes: must be 0 or at least 512 MiB (536870912)")
	check(c.Volume.ReserveBytes >= 0, "volume.reserveBytes: must not be negative")
	check(c.Volume.Overcommit >= 1, "volume.overcommit: must be at least 1")
	check(c.Pod.LogMaxBytes >= 64<<10, "pod.logMaxBytes: must be at least 65536")
	check(c.Pod.LogMaxFiles >= 2 && c.Pod.LogMaxFiles <= 100, "pod.logMaxFiles: must be 2 to 100")
	check(c.Pod.MaxPIDs >= 0, "pod.maxPIDs: must not be negative")
	return errors.Join(bad...)
}

// YAML returns the configuration as the file that would make it.
func (c Config) YAML() ([]byte, error) {
	var buf bytes.Buffer
	enc := yaml.NewEncoder(&buf)
	enc.SetIndent(2)
	if err := enc.Encode(c); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
