package registry

import (
	"context"
	"os"
	"time"

	dockerconfig "github.com/docker/cli/cli/config"
	dockertypes "github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// helperTimeout bounds a credential helper: it is another program, and may ask
// somebody who is not there.
const helperTimeout = 30 * time.Second

// credentials returns what the docker configuration, read anew each time, has for
// the host: directly, or by its credential store or helper.
func (c *Client) credentials(ctx context.Context, host string) (authn.Authenticator, error) {
	dir := c.o.DockerConfig
	if dir == "" {
		dir = os.Getenv("DOCKER_CONFIG")
	}
	if dir == "" {
		dir = "/root/.docker"
	}
	if _, err := os.Stat(dir); err != nil {
		return authn.Anonymous, nil
	}
	cf, err := dockerconfig.Load(dir)
	if err != nil {
		return nil, errs.New(errs.Invalid, "read docker's configuration in %s: %w", dir, err)
	}
	keys := []string{host}
	if host == "docker.io" {
		keys = []string{"https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"}
	}
	type answer struct {
		auth authn.Authenticator
		err  error
	}
	done := make(chan answer, 1)
	go func() { // ends with the helper
		for _, key := range keys {
			a, err := cf.GetAuthConfig(key)
			if err != nil {
				done <- answer{nil, errs.New(errs.Unauthenticated, "credential helper for %s: %w", host, err)}
				return
			}
			a.ServerAddress = ""
			if a != (dockertypes.AuthConfig{}) {
				done <- answer{authn.FromConfig(authn.AuthConfig{
					Username: a.Username, Password: a.Password, Auth: a.Auth,
					IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
				}), nil}
				return
			}
		}
		done <- answer{authn.Anonymous, nil}
	}()
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	select {
	case a := <-done:
		return a.auth, a.err
	case <-ctx.Done():
		return nil, errs.New(errs.Unavailable, "the credential helper for %s does not answer: %w", host, ctx.Err())
	}
}
