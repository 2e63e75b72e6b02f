package agent

import (
	"archive/tar"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/spf13/cobra"

	"plenum/agent/join"
	"plenum/agent/pki"
)

// A backup is a tar of this server host's own files and of snapshots of Consul, Nomad and Vault, encrypted to the
// admins' age keys: a snapshot of Nomad carries the key of its keys in clear, and the host's files open Vault.
const (
	consulSnapshot = "consul.snap"
	nomadSnapshot  = "nomad.snap"
	vaultSnapshot  = "vault.snap"
	restoreDir     = stateDir + "/restore"
)

// kept are the folders of a server host that a backup has. What services keep in them is in the snapshots.
var kept = []string{"/etc/plenum", keyDir, tlsDir, nebulaDir, joinDir, answerFile, foundingFile}

// maxBackupFile bounds one file of a backup that is restored.
const maxBackupFile = 8 << 30

func backupCommand(release string) *cobra.Command {
	return server(release, &cobra.Command{Use: "backup FILE", Short: "Write Consul, Nomad and Vault to a file that the admins alone can read", Args: cobra.ExactArgs(1)},
		func(ctx context.Context, c *Command, a join.Admin, _ string, args []string) error {
			return c.Backup(ctx, a, args[0])
		})
}

func restoreCommand(release string) *cobra.Command {
	c := &Command{Release: release}
	var identity string
	cmd := &cobra.Command{Use: "restore FILE --identity KEYFILE", Short: "Make this bare host the first server of a cluster that is lost", Args: cobra.ExactArgs(1),
		Long: `Make this bare host the first and only server of a cluster whose servers are all lost, from a backup. It takes
the place, name and addresses of the server that made the backup; other hosts find it by its address on the
underlay and come back by their host keys. Further servers join again.`}
	c.common(cmd, false)
	set := hostFlags(cmd)
	cmd.Flags().StringVar(&identity, "identity", "", "file with an admin's age key")
	cmd.Flags().StringVar(&c.Binaries, "binaries", "", "folder with plenum, consul, nomad and vault")
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return c.Restore(cmd.Context(), args[0], identity, set) }
	return cmd
}

// management are the tokens that the join services of a cluster share.
func (w *work) management() (t struct{ Consul, Nomad string }, err error) {
	b, err := w.host.Read(joinDir + "/common.json")
	if err == nil {
		err = json.Unmarshal(b, &t)
	}
	return t, err
}

// apis are clients that may do everything.
func (w *work) apis() (*consul.Client, *nomad.Client, error) {
	t, err := w.management()
	if err != nil {
		return nil, nil, err
	}
	c, err := consulClient(t.Consul)
	if err != nil {
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	ca, err := w.host.Read(tlsDir + "/ca.pem")
	if err != nil || !pool.AppendCertsFromPEM(ca) {
		return nil, nil, fmt.Errorf("%s: %w", tlsDir+"/ca.pem", errors.Join(err, errors.New("no CA")))
	}
	n, err := nomad.NewClient(&nomad.Config{Address: "https://" + nomadAddress, SecretID: t.Nomad, HttpClient: &http.Client{Timeout: 10 * time.Minute,
		Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "localhost"}}}})
	return c, n, err
}

// Backup writes the file whole, or not at all.
func (c *Command) Backup(ctx context.Context, a join.Admin, file string) (err error) {
	w, lock, err := c.work()
	if err != nil {
		return err
	}
	defer lock.Close()
	admins, err := a.Admins(ctx)
	if err != nil {
		return err
	}
	var to []age.Recipient
	for _, p := range admins {
		r, err := age.ParseX25519Recipient(p.Recipient)
		if err != nil {
			return fmt.Errorf("admin %s: %w", p.Name, err)
		}
		to = append(to, r)
	}
	if len(to) == 0 {
		return errors.New("nobody could read it: plenum admin add NAME=age1… first")
	}
	snapshots, err := w.snapshots(ctx)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(file + ".new")
	defer f.Close()
	enc, err := age.Encrypt(f, to...)
	if err != nil {
		return err
	}
	t := tar.NewWriter(enc)
	for _, name := range []string{consulSnapshot, nomadSnapshot, vaultSnapshot} {
		if err := addFile(t, name, snapshots[name]); err != nil {
			return err
		}
	}
	for _, dir := range kept {
		err := filepath.WalkDir(w.host.Path(dir), func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			name, err := filepath.Rel(w.host.Root(), p)
			if err != nil {
				return err
			}
			return addFile(t, "host/"+name, b)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := errors.Join(t.Close(), enc.Close(), f.Sync()); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	c.say("%s holds %s; %d admins can read it", file, w.answer.Cluster, len(to))
	return nil
}

func addFile(t *tar.Writer, name string, b []byte) error {
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(b)), Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err := t.Write(b)
	return err
}

// snapshots asks each server for its own. They are some MiB in a cluster of the sizes that we plan for.
func (w *work) snapshots(ctx context.Context) (map[string][]byte, error) {
	all := map[string][]byte{}
	c, n, err := w.apis()
	if err != nil {
		return nil, err
	}
	keep := func(name string, r io.ReadCloser, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		defer r.Close()
		all[name], err = io.ReadAll(r)
		return err
	}
	r, _, err := c.Snapshot().Save((&consul.QueryOptions{}).WithContext(ctx))
	if err := keep(consulSnapshot, r, err); err != nil {
		return nil, err
	}
	r, err = n.Operator().Snapshot((&nomad.QueryOptions{}).WithContext(ctx))
	if err := keep(nomadSnapshot, r, err); err != nil {
		return nil, err
	}
	v, err := pki.New(w.pki())
	if err != nil {
		return nil, err
	}
	root, err := v.Root(ctx)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	err = errors.Join(v.Snapshot(ctx, root, &b), v.Revoke(ctx, root))
	all[vaultSnapshot] = []byte(b.String())
	return all, err
}

// Restore does it, from the start every time: a killed one is begun again.
func (c *Command) Restore(ctx context.Context, file, identity string, set func(*Config)) error {
	w, lock, err := c.work()
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := w.host.Read(restoreDir + "/" + consulSnapshot); err != nil && (w.joined() || w.first) {
		return fmt.Errorf("this host is part of %s: restore is for a bare one", w.answer.Cluster)
	}
	if err := c.unpack(w, file, identity); err != nil {
		return err
	}
	if w, err = newWork(c.Root); err != nil {
		return err
	}
	w.binaries, w.hand.say = c.Binaries, c.say
	set(&w.cfg)
	if err := w.adopt(ctx, c); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{w.restoreVault, w.restoreConsul, w.restoreNomad} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if _, err := w.converge(ctx); err != nil {
		return err
	}
	if err := w.host.Remove(restoreDir); err != nil {
		return err
	}
	c.say("cluster %s is back on %s; other hosts come by themselves, further servers join again", w.answer.Cluster, w.answer.Host)
	return nil
}

// unpack decrypts the file onto the host.
func (c *Command) unpack(w *work, file, identity string) error {
	text, err := os.ReadFile(identity)
	if err != nil {
		return fmt.Errorf("--identity names the file of an admin's age key: %w", err)
	}
	ids, err := age.ParseIdentities(strings.NewReader(string(text)))
	if err != nil {
		return fmt.Errorf("%s: %w", identity, err)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, err := age.Decrypt(f, ids...)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	t := tar.NewReader(plain)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		name, ours := strings.CutPrefix(h.Name, "host/")
		target := path.Clean("/" + name)
		switch {
		case h.Size > maxBackupFile:
			return fmt.Errorf("%s: %s is too large", file, h.Name)
		case slices.Contains([]string{consulSnapshot, nomadSnapshot, vaultSnapshot}, h.Name):
			target = restoreDir + "/" + h.Name
		case !ours || !slices.ContainsFunc(kept, func(k string) bool { return target == k || strings.HasPrefix(target, k+"/") }):
			return fmt.Errorf("%s: %s is no part of a backup", file, h.Name)
		}
		b, err := io.ReadAll(t)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := os.MkdirAll(filepath.Dir(w.host.Path(target)), 0o700); err != nil {
			return err
		}
		if err := w.host.Write(target, b, 0o600); err != nil {
			return err
		}
	}
}

// adopt makes this host the one that the backup is of, alone, at its own address.
func (w *work) adopt(ctx context.Context, c *Command) error {
	if !w.is(join.RoleServer) {
		return errors.New("the backup is of no server host")
	}
	address, err := stable(w.cfg, w.facts)
	if err != nil {
		return err
	}
	w.cfg.Address = address.String()
	f := Founding{Cluster: w.answer.Cluster, Region: w.answer.Region, Roles: w.answer.Roles, Control: w.answer.Control.Masked(), Media: w.answer.Media.Masked()}
	if !w.first {
		if err := w.host.Write(foundingFile, marshal(f), 0o600); err != nil {
			return err
		}
		w.first = true
	}
	a := w.answer
	own := f.first(a.Host, address).Servers
	own[0].Control = a.Control.Addr()
	a.Servers, a.Nomad.Introduction = own, ""
	if a.Binaries, err = c.local(ctx, programs); err != nil {
		return err
	}
	if err := saveAnswer(w.host, a); err != nil {
		return err
	}
	w.answer = a
	if err := w.host.Write(configFile, w.cfg.text(), 0o644); err != nil {
		return err
	}
	return prepareDevice(a.Control)
}

// restoreVault starts an empty Vault with a key of its own, and puts the storage of the lost one into it.
func (w *work) restoreVault(ctx context.Context) error {
	w.hand.say("restore Vault")
	snapshot, err := w.host.Read(restoreDir + "/" + vaultSnapshot)
	if err != nil {
		return err
	}
	if err := errors.Join(w.host.Services().Stop(ctx, "plenum-vault"), w.host.Remove(stateDir+"/vault")); err != nil {
		return err
	}
	if _, err := w.converge(ctx, "plenum-overlay"); err != nil {
		return err
	}
	if _, err := w.apply(ctx, w.desired().only("plenum-vault")); err != nil {
		return err
	}
	c, err := local(w.host)
	if err != nil {
		return err
	}
	if err := w.until(ctx, "Vault", patience, func(ctx context.Context) error { return vaultAnswers(ctx, c) }); err != nil {
		return err
	}
	cfg := w.pki()
	cfg.KeyFile, cfg.Audit = w.host.Path(restoreDir, "vault.json"), ""
	if err := w.host.Remove(restoreDir + "/vault.json"); err != nil {
		return err
	}
	empty, err := pki.New(cfg)
	if err == nil {
		err = empty.Setup(ctx)
	}
	if err != nil {
		return err
	}
	root, err := empty.Root(ctx)
	if err != nil {
		return err
	}
	if err := empty.Restore(ctx, root, strings.NewReader(string(snapshot))); err != nil {
		return err
	}
	w.vault = nil // from here on by the lost one's key
	return w.until(ctx, "Vault to open by its own key", patience, func(ctx context.Context) error {
		if err := w.unseal(ctx); err != nil {
			return err
		}
		_, err := w.vault.Trust(ctx)
		return err
	})
}

func (w *work) restoreConsul(ctx context.Context) error {
	w.hand.say("restore Consul")
	if err := errors.Join(w.host.Services().Stop(ctx, "plenum-consul"), w.host.Remove(stateDir+"/consul")); err != nil {
		return err
	}
	if _, err := w.converge(ctx, "plenum-consul"); err != nil {
		return err
	}
	s, err := w.bootstrapper()
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.BootstrapConsul(ctx); err != nil {
		return err
	}
	snapshot, err := os.Open(w.host.Path(restoreDir, consulSnapshot))
	if err != nil {
		return err
	}
	defer snapshot.Close()
	c, _, err := w.apis()
	if err != nil {
		return err
	}
	return c.Snapshot().Restore((&consul.WriteOptions{}).WithContext(ctx), snapshot)
}

func (w *work) restoreNomad(ctx context.Context) error {
	w.hand.say("restore Nomad")
	if err := errors.Join(w.host.Services().Stop(ctx, "plenum-nomad"), w.host.Remove(stateDir+"/nomad")); err != nil {
		return err
	}
	if _, err := w.converge(ctx, "plenum-nomad"); err != nil {
		return err
	}
	s, err := w.bootstrapper()
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.BootstrapNomad(ctx); err != nil {
		return err
	}
	snapshot, err := os.Open(w.host.Path(restoreDir, nomadSnapshot))
	if err != nil {
		return err
	}
	defer snapshot.Close()
	_, n, err := w.apis()
	if err != nil {
		return err
	}
	if _, err := n.Operator().SnapshotRestore(snapshot, (&nomad.WriteOptions{}).WithContext(ctx)); err != nil {
		return fmt.Errorf("nomad: %w", err)
	}
	introduction, err := s.BootstrapNomad(ctx) // signed by the keys of the lost one
	if err != nil {
		return err
	}
	a := w.answer
	a.Nomad.Introduction = introduction
	return w.keep(a)
}
