package wireguard

import (
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// kernel drives a device of the kernel. It lives on when the process ends, keys and tunnels included.
type kernel struct {
	name   string
	client client
}

// client is what of wgctrl is used.
type client interface {
	ConfigureDevice(name string, c wgtypes.Config) error
	Device(name string) (*wgtypes.Device, error)
	Close() error
}

func openKernel(name string) (driver, error) {
	c, err := wgctrl.New()
	if err != nil {
		return nil, err
	}
	return &kernel{name, c}, nil
}

func (k *kernel) configure(c wgtypes.Config) error { return k.client.ConfigureDevice(k.name, c) }
func (k *kernel) device() (*wgtypes.Device, error) { return k.client.Device(k.name) }

// close forgets the key: a device without one neither sends nor answers.
func (k *kernel) close() error {
	var none wgtypes.Key
	err := k.configure(wgtypes.Config{PrivateKey: &none, ReplacePeers: true})
	if e := k.client.Close(); err == nil {
		err = e
	}
	return err
}
