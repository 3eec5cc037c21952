package migrate

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/toml"
)

// crioTable is for keys of crio.conf(5).
var crioTable = table{
	{"crio.root", silent}, {"crio.runroot", silent}, {"crio.log_dir", silent}, {"crio.version_file", silent}, {"crio.version_file_persist", silent},
	{"crio.clean_shutdown_file", silent}, {"crio.internal_wipe", silent}, {"crio.internal_repair", silent}, {"crio.imagestore", silent},
	{"crio.storage_driver", func(_ *carrier, _ []string, s setting) string {
		return otherThan(s.value, "overlay", "Orlop unpacks images itself, for overlayfs")
	}},
	{"crio.storage_option", unlessEmpty("options of the storage driver do not apply")},
	{"crio.api.listen", silent}, {"crio.api.host_ip", silent},
	{"crio.api.stream_address", silent}, // with the port
	{"crio.api.stream_port", func(c *carrier, m []string, s setting) string {
		if text, ok := s.value.(string); ok {
			s.value = text
		}
		return streaming("stream_address")(c, m, s)
	}},
	{"crio.api.stream_enable_tls", streamingTLS([]string{"stream_tls_cert"}, []string{"stream_tls_key"}, []string{"stream_tls_ca"})},
	{"crio.api.**", silent},
	{"crio.runtime.cgroup_manager", checked("cgroup.driver", nil)},
	{"crio.runtime.conmon_cgroup", silent}, {"crio.runtime.conmon", silent}, {"crio.runtime.conmon_env", silent},
	{"crio.runtime.log_level", checked("log.level", logLevel)},
	{"crio.runtime.log_size_max", checked("pod.logMaxBytes", positive)},
	{"crio.runtime.pids_limit", checked("pod.maxPIDs", positive)},
	{"crio.runtime.cdi_spec_dirs", checked("pod.cdiDirs", nil)},
	{"crio.runtime.default_runtime", func(_ *carrier, _ []string, s setting) string {
		if s.value == "runc" || s.value == "crun" {
			return ""
		}
		return "pods that name no runtime start by Orlop's own executor; others are asked for by a RuntimeClass (cri.runtimes)"
	}},
	{"crio.runtime.runtimes.*.runtime_path", func(c *carrier, match []string, s setting) string {
		if isEmpty(s.value) {
			return "it is looked for by its name; name its executable in cri.runtimes." + match[0] + ".path"
		}
		return c.runtime(match[0], s.value)
	}},
	{"crio.runtime.runtimes.*.runtime_type", func(_ *carrier, match []string, s setting) string {
		if s.value == "oci" || s.value == "" {
			return ""
		}
		return fmt.Sprintf("Orlop drives OCI runtimes by their command line, not of the type %v; take %s out of cri.runtimes", s.value, match[0])
	}},
	{"crio.runtime.runtimes.**", silent},
	{"crio.runtime.seccomp_profile", unlessEmpty("Orlop's default profile is the field's; a pod names another one, in pod.seccompDir, by its security context")},
	{"crio.runtime.default_capabilities", func(_ *carrier, _ []string, s setting) string {
		return "containers have the field's default capabilities; a pod's security context adds and drops"
	}},
	{"crio.runtime.default_sysctls", unlessEmpty("sysctls are set by a pod's security context")},
	{"crio.runtime.default_ulimits", unlessEmpty("limits of processes are those of the daemon's service unit")},
	{"crio.runtime.default_env", unlessEmpty("environment is set by a pod's manifest")},
	{"crio.runtime.hooks_dir", unlessEmpty("OCI hooks of directories are not run; an NRI plugin can add hooks (cri.nri.socket)")},
	{"crio.runtime.default_mounts_file", unlessEmpty("mounts are set by a pod's manifest")},
	{"crio.runtime.additional_devices", unlessEmpty("devices are given by name (pod.cdiDirs) or by the pod's manifest")},
	{"crio.runtime.workloads.**", because("Orlop has no workload classes")},
	{"crio.runtime.**", unlessEmpty("Orlop has nothing of the kind")},
	{"crio.image.pause_image", silent}, {"crio.image.pause_command", silent}, {"crio.image.pause_image_auth_file", silent},
	{"crio.image.global_auth_file", unlessEmpty("copy it to a directory as config.json and name that in image.dockerConfig")},
	{"crio.image.signature_policy", unlessEmpty("signatures are asked for by image.policy: write a rule with the key for each scope of that file")},
	{"crio.image.signature_policy_dir", silent},
	{"crio.image.insecure_registries", func(c *carrier, _ []string, s setting) string {
		list, ok := stringsOf(s.value)
		if !ok {
			return "it is no list of registries"
		}
		for _, host := range list {
			if strings.Contains(host, "/") {
				return fmt.Sprintf("%s is a range of addresses; name the hosts in image.registries", host)
			}
			r := c.registry(host)
			r.PlainHTTP, r.SkipVerify = true, true
		}
		return ""
	}},
	{"crio.image.registries", searchNote},
	{"crio.image.pinned_images", unlessEmpty("image.gc never removes what is in use or was made or imported here; nothing else is pinned by pattern")},
	{"crio.image.**", unlessEmpty("Orlop has nothing of the kind")},
	{"crio.network.cni_default_network", silent},
	{"crio.network.**", cniNote},
	{"crio.metrics.metrics_port", silent}, {"crio.metrics.metrics_host", silent}, {"crio.metrics.metrics_socket", unlessEmpty("metrics are served on the control socket too")},
	{"crio.metrics.enable_metrics", func(c *carrier, _ []string, s setting) string {
		if s.value != true {
			return ""
		}
		values, err := s.doc.Values()
		if err != nil {
			return err.Error()
		}
		m, _ := lookUp(values, []string{"crio", "metrics"}).(map[string]any)
		host, port := "127.0.0.1", any(int64(9090))
		if h, ok := m["metrics_host"].(string); ok && h != "" {
			host = h
		}
		if p, ok := m["metrics_port"]; ok {
			port = p
		}
		s.value = fmt.Sprintf("%s:%v", host, port)
		return checked("metrics.listen", nil)(c, nil, s)
	}},
	{"crio.metrics.**", silent},
	{"crio.tracing.tracing_endpoint", unlessEmpty("it speaks gRPC; name the collector's URL for OTLP over HTTP in tracing.endpoint")},
	{"crio.tracing.**", silent},
	{"crio.stats.**", silent},
	{"crio.nri.enable_nri", func(c *carrier, _ []string, s setting) string {
		if s.value != true {
			c.out["cri.nri.socket"] = "off"
		} else if _, ok := c.out["cri.nri.socket"]; !ok {
			c.out["cri.nri.socket"] = "/var/run/nri/nri.sock"
		}
		return ""
	}},
	{"crio.nri.nri_listen", func(c *carrier, _ []string, s setting) string { return nriSocket(c, s) }},
	{"crio.nri.nri_plugin_dir", unlessEmpty("Orlop starts no plugins; start them by a service, they connect to cri.nri.socket")},
	{"crio.nri.**", silent},
}

// positive leaves out what stands for no limit, and kubelet's business.
func positive(v any) any {
	if n, ok := v.(int64); !ok || n <= 0 {
		return nil
	}
	return v
}

// searchNote is for registries that short names are looked for in.
func searchNote(_ *carrier, _ []string, s setting) string {
	list, _ := stringsOf(s.value)
	if slices.Equal(list, []string{"docker.io"}) || len(list) == 0 {
		return ""
	}
	return "a name without a registry is of docker.io always; write names in full"
}

// CRIOSettings reads CRI-O's configuration, crio.conf and the files of crio.conf.d
// beside it, and containers-registries.conf(5) with the files of its directory.
// Either file may be missing; "" reads none.
func CRIOSettings(crio, registries string) (Settings, error) {
	c := &carrier{out: make(map[string]any)}
	if crio != "" {
		docs, err := openAll(crio, crio+".d", "*")
		if err != nil {
			return Settings{}, err
		}
		for _, d := range docs {
			if err := c.document(d, crioTable, func(p []string) []string { return p }); err != nil {
				return Settings{}, err
			}
		}
	}
	if registries != "" {
		docs, err := openAll(registries, registries+".d", "*.conf")
		if err != nil {
			return Settings{}, err
		}
		for _, d := range docs {
			if err := c.registriesFile(d); err != nil {
				return Settings{}, err
			}
		}
	}
	if len(c.files) == 0 {
		return Settings{}, errs.New(errs.NotFound, "there is neither %s nor %s; name them with --config and --registries", crio, registries)
	}
	return c.settings("CRI-O")
}

// registriesFile is a registries.conf of the second version; of the first, lists of
// hosts.
type registriesFile struct {
	Search     []string          `toml:"unqualified-search-registries"`
	ShortName  string            `toml:"short-name-mode"`
	Helpers    []string          `toml:"credential-helpers"`
	Additional any               `toml:"additional-layer-store-auth-helper"`
	Aliases    map[string]string `toml:"aliases"`
	Registry   []struct {
		Prefix             string `toml:"prefix"`
		Location           string `toml:"location"`
		Insecure           bool   `toml:"insecure"`
		Blocked            bool   `toml:"blocked"`
		MirrorByDigestOnly bool   `toml:"mirror-by-digest-only"`
		Mirror             []struct {
			Location       string `toml:"location"`
			Insecure       bool   `toml:"insecure"`
			PullFromMirror string `toml:"pull-from-mirror"`
		} `toml:"mirror"`
	} `toml:"registry"`
	Registries map[string]struct {
		Registries []string `toml:"registries"`
	} `toml:"registries"`
}

// registriesFile carries over a registries.conf, which is a list of tables.
func (c *carrier) registriesFile(doc *toml.Document) error {
	var f registriesFile
	if err := doc.Decode(&f); err != nil {
		return err
	}
	c.files = append(c.files, doc.Path)
	note := func(line int, key, why string) { c.notes = append(c.notes, Note{doc.Path, line, key, why}) }
	if len(f.Search) > 0 && !slices.Equal(f.Search, []string{"docker.io"}) {
		note(doc.Line("unqualified-search-registries"), "unqualified-search-registries", "a name without a registry is of docker.io always; write names in full")
	}
	if len(f.Aliases) > 0 {
		note(doc.Line("aliases"), "aliases", fmt.Sprintf("%d short names: a name without a registry is of docker.io always; write names in full", len(f.Aliases)))
	}
	if len(f.Helpers) > 0 && !slices.Equal(f.Helpers, []string{"containers-auth.json"}) {
		note(doc.Line("credential-helpers"), "credential-helpers", "name them in the config.json that image.dockerConfig names (credHelpers)")
	}
	for kind, v := range f.Registries {
		for _, host := range v.Registries {
			switch kind {
			case "insecure":
				r := c.registry(host)
				r.PlainHTTP, r.SkipVerify = true, true
			case "block":
				c.rules = append(c.rules, config.PolicyRule{Prefix: host, Action: "reject"})
			case "search":
				if host != "docker.io" {
					note(doc.Line("registries", kind), "registries."+kind, host+": a name without a registry is of docker.io always; write names in full")
				}
			}
		}
	}
	// The tables of a list have the same key: its lines, in order, are theirs.
	var lines []int
	for _, k := range doc.Keys {
		if k.Table && slices.Equal(k.Path, []string{"registry"}) {
			lines = append(lines, k.Line)
		}
	}
	for i, r := range f.Registry {
		line := 0
		if i < len(lines) {
			line = lines[i]
		}
		prefix := r.Prefix
		if prefix == "" {
			prefix = r.Location
		}
		key := "registry " + prefix
		if r.Blocked {
			if strings.HasPrefix(prefix, "*.") {
				note(line, key, "rules of image.policy are for hosts, not for all below a domain")
				continue
			}
			c.rules = append(c.rules, config.PolicyRule{Prefix: prefix, Action: "reject"})
			continue
		}
		host, path, _ := strings.Cut(prefix, "/")
		if path != "" || strings.HasPrefix(prefix, "*.") {
			note(line, key, "where images come from is set for whole registries (image.registries, hosts.toml), not for a part of one")
			continue
		}
		if r.MirrorByDigestOnly {
			note(line, key+": mirror-by-digest-only", "a mirror that may not say what a tag means has capabilities = [\"pull\"] in hosts.toml; these mirrors may")
		}
		for _, m := range r.Mirror {
			if m.PullFromMirror == "digest-only" && !r.MirrorByDigestOnly || m.PullFromMirror == "tag-only" {
				note(line, key+": pull-from-mirror", "capabilities in hosts.toml say what a mirror may be asked for; "+m.Location+" may be asked for all")
			}
			if why := c.mirror(host, m.Location, m.Insecure); why != "" {
				note(line, key+": mirror", why)
			}
		}
		if r.Location != "" && r.Location != prefix {
			if why := c.mirror(host, r.Location, r.Insecure); why != "" {
				note(line, key+": location", why)
			} else {
				note(line, key+": location", r.Location+" is asked first, and "+host+" itself where that fails; to ask nobody else make it the server of /etc/orlop/certs.d/"+filepath.Base(host)+"/hosts.toml")
			}
		} else if r.Insecure {
			reg := c.registry(host)
			reg.PlainHTTP, reg.SkipVerify = true, true
		}
	}
	return nil
}
