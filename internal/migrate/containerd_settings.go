package migrate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/toml"
)

const (
	inHosts   = "make it a hosts.toml in a directory of image.hostsDirs (/etc/orlop/certs.d/HOST/hosts.toml)"
	inDocker  = "secrets are not copied; log in with docker login, or put it into the config.json that image.dockerConfig names"
	ownLimits = "Orlop's own processes are limited by their service unit"
)

// containerdTable is for keys of config.toml, those of the CRI's plugins with cri in
// their place, whatever the version.
var containerdTable = table{
	{"version", silent}, {"imports", silent}, {"root", silent}, {"state", silent}, {"temp", silent},
	{"grpc.address", silent}, {"grpc.uid", silent}, {"grpc.gid", silent}, {"ttrpc.**", silent},
	{"oom_score", because(ownLimits)}, {"cgroup.path", because(ownLimits)},
	{"disabled_plugins", silent}, {"required_plugins", silent}, {"plugin_dir", silent}, {"timeouts.**", silent},
	{"debug.level", checked("log.level", logLevel)},
	{"debug.format", checked("log.format", nil)},
	{"debug.**", silent},
	{"metrics.address", checked("metrics.listen", empty)},
	{"metrics.grpc_histogram", silent},
	{"proxy_plugins.**", because("Orlop unpacks images itself and takes no snapshotter from elsewhere")},
	{"stream_processors.**", because("Orlop decrypts no images and knows no other processors")},

	{"cri.registry.config_path", func(c *carrier, _ []string, s setting) string {
		text, _ := s.value.(string)
		if text == "" {
			return ""
		}
		dirs := filepath.SplitList(text)
		if err := valid("image.hostsDirs", dirs); err != nil {
			return err.Error()
		}
		c.out["image.hostsDirs"] = dirs
		return ""
	}},
	{"cri.registry.mirrors.*.endpoint", func(c *carrier, match []string, s setting) string {
		list, ok := stringsOf(s.value)
		if !ok {
			return "it is no list of addresses"
		}
		if match[0] == "*" {
			return "mirrors for every registry are in /etc/orlop/certs.d/_default/hosts.toml: a table [host.\"URL\"] for each of " + strings.Join(list, ", ")
		}
		for _, e := range list {
			if why := c.mirror(match[0], e, false); why != "" {
				return why
			}
		}
		return ""
	}},
	{"cri.registry.mirrors.*.rewrite.**", because("names cannot be rewritten; a mirror's path can, by override_path in its hosts.toml")},
	{"cri.registry.configs.*.tls.ca_file", func(c *carrier, match []string, s setting) string {
		if text, _ := s.value.(string); text != "" {
			c.registry(match[0]).CAFile = text
		}
		return ""
	}},
	{"cri.registry.configs.*.tls.insecure_skip_verify", func(c *carrier, match []string, s setting) string {
		c.registry(match[0]).SkipVerify = s.value == true
		return ""
	}},
	{"cri.registry.configs.*.tls.**", unlessEmpty("client certificates are in hosts.toml: " + inHosts)},
	{"cri.registry.configs.*.auth.**", unlessEmpty(inDocker)},
	{"cri.registry.auths.**", unlessEmpty(inDocker)},
	{"cri.registry.headers.**", unlessEmpty("headers are set for each host: " + inHosts)},
	{"cri.max_concurrent_downloads", checked("image.parallel", nil)},
	{"cri.image_decryption.**", silent},
	{"cri.discard_unpacked_layers", silent}, // Orlop keeps them: they are what layers are made of again
	{"cri.sandbox_image", silent}, {"cri.pinned_images.**", silent},
	{"cri.snapshotter", func(_ *carrier, _ []string, s setting) string {
		return otherThan(s.value, "overlayfs", "Orlop unpacks images itself, for overlayfs")
	}},
	{"cri.containerd.snapshotter", func(_ *carrier, _ []string, s setting) string {
		return otherThan(s.value, "overlayfs", "Orlop unpacks images itself, for overlayfs")
	}},
	{"cri.containerd.discard_unpacked_layers", silent},
	{"cri.containerd.default_runtime_name", func(_ *carrier, _ []string, s setting) string {
		return otherThan(s.value, "runc", "pods that name no runtime start by Orlop's own executor; others are asked for by a RuntimeClass (cri.runtimes)")
	}},
	{"cri.containerd.runtimes.*.options.SystemdCgroup", func(c *carrier, match []string, s setting) string {
		if match[0] == "runc" {
			c.out["cgroup.driver"] = "cgroupfs"
			if s.value == true {
				c.out["cgroup.driver"] = "systemd"
			}
		}
		return ""
	}},
	{"cri.containerd.runtimes.runc.**", silent},
	{"cri.containerd.runtimes.*.runtime_type", func(_ *carrier, match []string, s setting) string {
		if s.value == "io.containerd.runc.v2" {
			return "" // its BinaryName says which
		}
		return fmt.Sprintf("%v is a shim of containerd's; where %s has an OCI executable (runsc has), name that in cri.runtimes.%s.path", s.value, match[0], match[0])
	}},
	{"cri.containerd.runtimes.*.options.BinaryName", func(c *carrier, match []string, s setting) string {
		if isEmpty(s.value) {
			return ""
		}
		return c.runtime(match[0], s.value)
	}},
	{"cri.containerd.runtimes.**", silent}, // its type says it once
	{"cri.containerd.disable_snapshot_annotations", silent},
	{"cri.systemd_cgroup", func(c *carrier, _ []string, s setting) string {
		if s.value == true {
			c.out["cgroup.driver"] = "systemd"
		}
		return ""
	}},
	{"cri.cni.**", cniNote},
	{"cri.stream_server_address", silent}, // with the port
	{"cri.stream_server_port", streaming("stream_server_address")},
	{"cri.stream_idle_timeout", silent},
	{"cri.enable_tls_streaming", streamingTLS([]string{"x509_key_pair_streaming", "tls_cert_file"}, []string{"x509_key_pair_streaming", "tls_key_file"}, nil)},
	{"cri.x509_key_pair_streaming.*", silent}, // where TLS is turned on
	{"cri.enable_cdi", silent},
	{"cri.cdi_spec_dirs", checked("pod.cdiDirs", nil)},
	{"cri.disable_apparmor", silent}, {"cri.disable_cgroup", silent}, {"cri.disable_hugetlb_controller", silent}, {"cri.tolerate_missing_hugetlb_controller", silent},
	{"cri.disable_proc_mount", silent}, {"cri.restrict_oom_score_adj", silent}, {"cri.ignore_image_defined_volumes", silent}, {"cri.disable_tcp_service", silent},
	{"nri.socket_path", func(c *carrier, _ []string, s setting) string { return nriSocket(c, s) }},
	{"nri.disable", func(c *carrier, _ []string, s setting) string {
		if s.value == false {
			if _, ok := c.out["cri.nri.socket"]; !ok {
				c.out["cri.nri.socket"] = "/var/run/nri/nri.sock"
			}
		} else {
			c.out["cri.nri.socket"] = "off"
		}
		return ""
	}},
	{"nri.plugin_path", because("Orlop starts no plugins; start them by a service, they connect to cri.nri.socket")},
	{"nri.plugin_config_path", silent},
	{"plugins.io_containerd_tracing.endpoint", func(c *carrier, _ []string, s setting) string {
		text, _ := s.value.(string)
		if text == "" {
			return ""
		}
		if !strings.HasPrefix(text, "http") {
			return "traces go by OTLP over HTTP only; name the collector's URL for that in tracing.endpoint"
		}
		return checked("tracing.endpoint", nil)(c, nil, s)
	}},
	{"plugins.io_containerd_tracing.**", silent},
	{"plugins.*.**", silentPlugins},
}

// silentPlugins are containerd's parts that Orlop has none of, or whose defaults are
// written into the file by containerd config default.
func silentPlugins(_ *carrier, match []string, s setting) string {
	if strings.Contains(match[0], "snapshotter") && !strings.Contains(match[0], "overlayfs") {
		if isEmpty(s.value) {
			return ""
		}
		return "Orlop has nothing of the kind"
	}
	return ""
}

func isEmpty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case bool:
		return !v
	case int64:
		return v == 0
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}

func unlessEmpty(why string) carry {
	return func(_ *carrier, _ []string, s setting) string {
		if isEmpty(s.value) {
			return ""
		}
		return why
	}
}

func otherThan(v any, usual, why string) string {
	if v == usual || v == "" {
		return ""
	}
	return why
}

func empty(v any) any {
	if v == "" {
		return nil
	}
	return v
}

// logLevel gives levels the names that Orlop has.
func logLevel(v any) any {
	switch v {
	case "trace":
		return "debug"
	case "fatal", "panic":
		return "error"
	case "warning":
		return "warn"
	case "":
		return nil
	}
	return v
}

func cniNote(_ *carrier, _ []string, s setting) string {
	if k := s.path[len(s.path)-1]; k != "bin_dir" && k != "bin_dirs" && k != "conf_dir" && k != "network_dir" && k != "plugin_dirs" {
		return ""
	}
	return "Orlop connects pods itself (network.ipv4Block, network.ipv6Block) and calls no CNI plugins"
}

// streaming joins the port with the address beside it.
func streaming(address string) carry {
	return func(c *carrier, _ []string, s setting) string {
		values, err := s.doc.Values()
		if err != nil {
			return err.Error()
		}
		host, _ := lookUp(values, append(slices.Clone(s.path[:len(s.path)-1]), address)).(string)
		if host == "" {
			host = "127.0.0.1"
		}
		v := fmt.Sprintf("%s:%v", host, s.value)
		if err := valid("cri.streaming", v); err != nil {
			return err.Error()
		}
		c.out["cri.streaming"] = v
		return ""
	}
}

// streamingTLS carries over the certificate of sessions' addresses, where TLS is
// turned on; the keys are those of its files, beside the one that turns it on.
func streamingTLS(cert, key, ca []string) carry {
	return func(c *carrier, _ []string, s setting) string {
		if s.value != true {
			return ""
		}
		values, err := s.doc.Values()
		if err != nil {
			return err.Error()
		}
		beside := func(path []string) string {
			if path == nil {
				return ""
			}
			text, _ := lookUp(values, append(slices.Clone(s.path[:len(s.path)-1]), path...)).(string)
			return text
		}
		v := map[string]any{"certFile": beside(cert), "keyFile": beside(key)}
		if v["certFile"] == "" || v["keyFile"] == "" {
			return "it makes a certificate for itself, which Orlop does not; name one in cri.streamingTLS"
		}
		if f := beside(ca); f != "" {
			v["clientCAFile"] = f
		}
		if err := valid("cri.streamingTLS", v); err != nil {
			return err.Error()
		}
		c.out["cri.streamingTLS"] = v
		return ""
	}
}

func nriSocket(c *carrier, s setting) string {
	path, _ := s.value.(string)
	if err := valid("cri.nri.socket", path); err != nil {
		return err.Error()
	}
	if c.out["cri.nri.socket"] != "off" {
		c.out["cri.nri.socket"] = path
	}
	return ""
}

// containerdKey gives keys of all versions one form.
func containerdKey(path []string) []string {
	if len(path) < 2 || path[0] != "plugins" {
		return path
	}
	rest := path[2:]
	switch path[1] {
	case "cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images":
		return append([]string{"cri"}, rest...)
	case "io.containerd.nri.v1.nri":
		return append([]string{"nri"}, rest...)
	case "io.containerd.tracing.processor.v1.otlp":
		return append([]string{"plugins", "io_containerd_tracing"}, rest...)
	}
	return path
}

// ContainerdSettings reads containerd's configuration, of version 1, 2 or 3, with the
// files that it imports.
func ContainerdSettings(path string) (Settings, error) {
	c := &carrier{out: make(map[string]any)}
	seen := make(map[string]bool)
	var read func(path string) error
	read = func(path string) error {
		if seen[path] {
			return nil
		}
		seen[path] = true
		doc, err := toml.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return errs.New(errs.NotFound, "there is no %s; containerd runs by its defaults, or name its file with --config (none: --config '')", path)
		}
		if err != nil {
			return err
		}
		values, err := doc.Values()
		if err != nil {
			return err
		}
		if v, ok := values["version"].(int64); ok && v > 4 {
			return errs.New(errs.Unsupported, "%s:%d: version %d is not known", path, doc.Line("version"), v)
		}
		// Imported files are read after it, and win.
		if err := c.document(doc, containerdTable, containerdKey); err != nil {
			return err
		}
		imports, _ := stringsOf(values["imports"])
		for _, pattern := range imports {
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(path), pattern)
			}
			files, err := filepath.Glob(pattern)
			if err != nil {
				return doc.Invalid([]string{"imports"}, "%q: %w", pattern, err)
			}
			for _, f := range files {
				if err := read(f); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := read(path); err != nil {
		return Settings{}, err
	}
	return c.settings("containerd")
}
