package policy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // the digests that are used
	_ "crypto/sha512"
	"fmt"
)

// The signatures are those that sigstore's tools make by default: ECDSA in ASN.1,
// RSA by PKCS #1 v1.5, Ed25519 of the message itself.

// minRSABits is what NIST SP 800-131A allows.
const minRSABits = 2048

// usable tells whether signatures of the key can be verified.
func usable(public crypto.PublicKey) error {
	switch k := public.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSABits {
			return fmt.Errorf("the RSA key has %d bits; %d is the least", k.N.BitLen(), minRSABits)
		}
		return nil
	}
	return fmt.Errorf("a key of type %T cannot be used; ECDSA, RSA and Ed25519 can", public)
}

// verify tells whether the signature of the message is the key's.
func verify(public crypto.PublicKey, message, signature []byte) bool {
	sum := func(h crypto.Hash) []byte {
		w := h.New()
		w.Write(message)
		return w.Sum(nil)
	}
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(k, sum(crypto.SHA256), signature) {
			return true
		}
		// Newer tools take the digest that has the curve's size.
		switch bits := k.Curve.Params().BitSize; {
		case bits > 384:
			return ecdsa.VerifyASN1(k, sum(crypto.SHA512), signature)
		case bits > 256:
			return ecdsa.VerifyASN1(k, sum(crypto.SHA384), signature)
		}
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, sum(crypto.SHA256), signature) == nil
	case ed25519.PublicKey:
		return len(k) == ed25519.PublicKeySize && ed25519.Verify(k, message, signature)
	}
	return false
}
