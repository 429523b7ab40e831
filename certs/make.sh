#!/bin/sh
# Make a CA and a serving certificate with openssl alone: the same files as `driftgate certs`, where there is no Python.
#
#   certs/make.sh [--renew] DIRECTORY NAME...        NAME: a DNS name or an IP address
#   DAYS=365 CA_DAYS=3650 certs/make.sh ...          how long they are valid
#
# A CA that is in DIRECTORY signs again. A serving certificate that is there is replaced only with --renew.
set -eu
umask 077

renew=no
if [ "${1-}" = --renew ]; then
  renew=yes
  shift
fi
if [ $# -lt 2 ]; then
  sed -n 's/^# \{0,1\}//; 2,7p' "$0" >&2
  exit 2
fi
directory=$1
shift

if [ -e "$directory/tls.crt" ] && [ $renew = no ]; then
  echo "$directory/tls.crt is there, until $(openssl x509 -in "$directory/tls.crt" -noout -enddate | cut -d= -f2): nothing to do; --renew makes a new one"
  exit 0
fi
if [ -e "$directory/ca.crt" ] && [ ! -e "$directory/ca.key" ]; then
  echo "$directory/ca.crt is there without ca.key, so nothing can be signed: put that beside it, or remove ca.crt for a new CA" >&2
  exit 1
fi

number=0
names=
for name in "$@"; do
  case $name in
    *[!0-9A-Za-z.:*_-]* | "") echo "'$name' is neither a DNS name nor an IP address" >&2; exit 2 ;;
    *:*) kind=IP ;;
    *[!0-9.]*) kind=DNS ;;
    *) kind=IP ;;
  esac
  number=$((number + 1))
  names="$names$kind.$number = $name
"
done

mkdir -p "$directory"
work=$(mktemp -d "$directory/.make.XXXXXX") # in the same folder, so that the files are renamed and not copied
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

cat > "$work/openssl.cnf" <<END
[req]
prompt = no
distinguished_name = name
[name]
CN = driftgate
[ca_name]
CN = driftgate CA
[ca]
basicConstraints = critical, CA:true, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[serving]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
subjectAltName = @names
[names]
$names
END

new_key() {
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"
}

if [ ! -e "$directory/ca.key" ]; then
  new_key "$work/ca.key"
  sed 's/^distinguished_name = name/distinguished_name = ca_name/' "$work/openssl.cnf" > "$work/ca.cnf"
  openssl req -x509 -new -sha256 -config "$work/ca.cnf" -extensions ca -key "$work/ca.key" \
    -days "${CA_DAYS:-3650}" -out "$work/ca.crt"
  chmod 644 "$work/ca.crt"
  mv "$work/ca.key" "$directory/ca.key"
  mv "$work/ca.crt" "$directory/ca.crt"
fi

new_key "$work/tls.key"
openssl req -new -sha256 -config "$work/openssl.cnf" -key "$work/tls.key" -out "$work/tls.csr"
openssl x509 -req -sha256 -in "$work/tls.csr" -CA "$directory/ca.crt" -CAkey "$directory/ca.key" \
  -set_serial "0x$(openssl rand -hex 16 | sed 's/^[89a-f]/7/; s/^0/1/')" -days "${DAYS:-365}" \
  -extfile "$work/openssl.cnf" -extensions serving -out "$work/tls.crt" 2> "$work/said" || { cat "$work/said" >&2; exit 1; }
chmod 644 "$work/tls.crt"
mv "$work/tls.key" "$directory/tls.key" # before the certificate, as a server may be reading
mv "$work/tls.crt" "$directory/tls.crt"

openssl verify -CAfile "$directory/ca.crt" "$directory/tls.crt"
openssl x509 -in "$directory/tls.crt" -noout -enddate
