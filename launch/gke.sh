#!/usr/bin/env bash
# TPUs or GPUs on GKE, as a JobSet (launch/gke/), with kubectl and JobSet in the cluster, or through xpk:
#
#   bash launch/gke.sh apply --name N --topology v5e:4x4 --image IMAGE --storage gs://BUCKET -- train CONFIG run_dir=...
#   bash launch/gke.sh show  (the same)              the manifest, to be read or kept
#   bash launch/gke.sh xpk   (the same) --cluster C --zone Z        through xpk, TPUs only
#   bash launch/gke.sh status|logs|delete --name N
#
#   --topology T     as for rapo plan: v5e:4x4, v5p:2x2x4, v6e:8x8, or h100:2x8 (nodes x GPUs)
#   --image I        of launch/container/, pushed where the cluster reads it; CONFIG is a path in it or under /mnt/rapo
#   --storage S      gs://BUCKET (the cluster's GCS FUSE driver), pvc:CLAIM (ReadWriteMany), or for xpk the name of its
#                    storage; all pods see it at /mnt/rapo
#   --spot, --restarts N (default 30), --max-hours H (of one start; default 168), --service-account A (default: default)
#   --namespace S, --project P (xpk), --follow (logs), --dry-run (shows what would be done)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/doing.sh
. launch/doing.sh

name='' topology='' image='' kept='' spot='' restarts=30 max_hours=168 account=default cluster='' zone='' project=''
namespace='' kube=(kubectl)

option() {
  taken=2
  case $1 in
    --name) a_name "$@" && name=$value ;;
    --topology) a_value "$@" && topology=$value ;;
    --image) a_value "$@" && image=$value ;;
    --storage) a_value "$@" && kept=$value ;;
    --restarts) a_number "$@" && restarts=$value ;;
    --max-hours) a_number "$@" && max_hours=$value ;;
    --service-account) a_name "$@" && account=$value ;;
    --namespace) a_name "$@" && namespace=$value ;;
    --cluster) a_value "$@" && cluster=$value ;;
    --zone) a_value "$@" && zone=$value ;;
    --project) a_value "$@" && project=$value ;;
    --spot) spot=1 && taken=1 ;;
    *) return 1 ;;
  esac
}

options() {
  each_word "$@"
  [ ${#places[@]} = 0 ] || no_option "${places[0]}"
  [ -z "$namespace" ] || kube+=(--namespace "$namespace")
  [ -n "$name" ] || fail "--name is missing: what the job is to be called."
}

accelerator=0 hosts=0 chips=0 shape=''
topology_parts() { # sets accelerator, hosts, chips of a host, shape
  local all
  [[ $topology =~ ^[a-z0-9]+:[0-9]{1,3}(x[0-9]{1,3}){1,2}$ ]] ||
    fail "--topology=$topology must be as for rapo plan, such as v5e:4x4, v5p:2x2x4 or h100:2x8."
  shape=${topology#*:}
  all=1
  local rest=$shape
  while [ -n "$rest" ]; do
    all=$((all * 10#${rest%%x*}))
    case $rest in *x*) rest=${rest#*x} ;; *) rest='' ;; esac
  done
  [ "$all" -gt 0 ] || fail "--topology=$topology has no chips."
  hosts=${shape%%x*} chips=${shape##*x}
  case $topology in
    v5e:*x*x* | v6e:*x*x* | h100:*x*x* | h200:*x*x* | a100:*x*x*) fail "--topology=$topology must be two numbers, such as v5e:4x4." ;;
    v5e:*) accelerator=tpu-v5-lite-podslice ;;
    v6e:*) accelerator=tpu-v6e-slice ;;
    v5p:*x*x*) accelerator=tpu-v5p-slice ;;
    v4:*x*x*) accelerator=tpu-v4-podslice ;;
    tpu7x:*x*x*) accelerator=tpu7x ;;
    h100:*) accelerator=nvidia-h100-80gb ;;
    h200:*) accelerator=nvidia-h200-141gb ;;
    a100:*) accelerator=nvidia-a100-80gb ;;
    *) fail "--topology=$topology: the kinds are v4, v5e, v5p, v6e, tpu7x, a100, h100 and h200, with AxBxC for v4, v5p and tpu7x." ;;
  esac
  case $accelerator in
    nvidia-*) [ "$chips" -le 8 ] || fail "--topology=$topology: a node has at most 8 GPUs (nodes x GPUs)." ;;
    *)
      # Slices up to 2x4 of v5e and v6e are one host; all others have four chips a host.
      case $accelerator:$shape in
        tpu-v5-lite*:1x1 | tpu-v5-lite*:2x2 | tpu-v5-lite*:2x4 | tpu-v6e*:1x1 | tpu-v6e*:2x2 | tpu-v6e*:2x4)
          hosts=1 chips=$all
          ;;
        *)
          [ $((all % 4)) = 0 ] || fail "--topology=$topology is no slice: hosts have four chips."
          hosts=$((all / 4)) chips=4
          ;;
      esac
      ;;
  esac
}

in_json() { # the words as a JSON list, in which Kubernetes shall expand nothing but ours
  local word line=''
  for word in "$@"; do
    [[ $word != *[[:cntrl:]]* ]] || fail "the words for rapo hold a line break or another control character."
    word=${word//\\/\\\\}
    word=${word//\"/\\\"}
    line+="${line:+, }\"$word\""
  done
  printf '[%s]\n' "$line"
}

# shellcheck disable=SC2016 # ${} stands in the manifest, and $() is for Kubernetes
show_manifest() {
  local file=launch/gke/tpu.yaml volume text joined=(--distributed) word
  [ -n "$image" ] || fail "--image is missing: the image of launch/container/, where the cluster can read it."
  case $accelerator in
    nvidia-*)
      file=launch/gke/gpu.yaml
      joined=(--coordinator "$name-worker-0-0.$name:8476" --num-processes "$hosts" --process-id '$(RAPO_PROCESS)')
      ;;
  esac
  case $kept in
    gs://*)
      a_storage --storage "$kept"
      volume="csi: {driver: gcsfuse.csi.storage.gke.io, volumeAttributes: {bucketName: ${kept#gs://}, mountOptions:"
      volume+=" \"implicit-dirs,metadata-cache:ttl-secs:0,file-system:rename-dir-limit:200000\"}}"
      ;;
    pvc:*) a_name --storage=pvc "${kept#pvc:}" && volume="persistentVolumeClaim: {claimName: $value}" ;;
    *) fail "--storage=$kept must be gs://BUCKET or pvc:CLAIM." ;;
  esac
  text=$(cat "$file")
  [ -n "$spot" ] || text=$(grep -v 'only with --spot' <<<"$text")
  words=("${words[@]//\$(/\$\$(}") # a $( of the user's stays as it is
  word=$(in_json "${words[@]}" "${joined[@]}") || exit
  text=${text//'${NAME}'/"$name"}
  text=${text//'${RESTARTS}'/"$restarts"}
  text=${text//'${HOSTS}'/"$hosts"}
  text=${text//'${CHIPS}'/"$chips"}
  text=${text//'${SHAPE}'/"$shape"}
  text=${text//'${ACCELERATOR}'/"$accelerator"}
  text=${text//'${SERVICE_ACCOUNT}'/"$account"}
  text=${text//'${SECONDS_AT_MOST}'/"$((max_hours * 3600))"}
  text=${text//'${IMAGE}'/"$image"}
  text=${text//'${VOLUME}'/"$volume"}
  text=${text//'${WORDS}'/"$word"}
  printf '%s\n' "$text"
}

prepare() {
  topology_parts
  [[ $image =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] || fail "--image=$image must be an image, such as REGION-docker.pkg.dev/P/R/rapo:tpu."
  [ "$max_hours" -ge 1 ] || fail "--max-hours=$max_hours must be at least 1."
  a_verb ${words[@]+"${words[@]}"}
}

apply() {
  local manifest
  prepare
  manifest=$(show_manifest) || exit
  if [ -n "$dry" ]; then printf '%s\n' "$manifest"; fi
  show "${kube[@]}" apply --filename -
  [ -n "$dry" ] || "${kube[@]}" apply --filename - <<<"$manifest"
  echo "Its nodes cost money until:"
  wrapped bash launch/gke.sh delete --name "$name" ${namespace:+--namespace "$namespace"} | sed 's/^+/ /'
}

through_xpk() {
  local type
  prepare
  case $topology in
    v5e:*) type=v5litepod-$((hosts * chips)) ;;
    v6e:*) type=v6e-$((hosts * chips)) ;;
    v5p:* | v4:*) type=${topology%%:*}-$((hosts * chips * 2)) ;; # counted in cores
    *) fail "--topology=$topology: xpk runs v4, v5e, v5p and v6e here; use apply." ;;
  esac
  if [ -z "$cluster" ] || [ -z "$zone" ]; then fail "xpk needs --cluster and --zone."; fi
  case $kept in gs://* | pvc:*) fail "--storage=$kept: for xpk, the name of a storage that xpk storage list shows." ;; esac
  # xpk starts again after 42, 127 to 255 and these; 2 ends the workload.
  doing xpk workload create --workload "$name" --cluster "$cluster" --zone "$zone" \
    ${project:+--project "$project"} --tpu-type "$type" --num-slices 1 --docker-image "$image" \
    ${kept:+--storage "$kept"} --max-restarts "$restarts" --restart-on-exit-codes 75,76 \
    --command "rapo $(quoted "${words[@]}" --distributed | paste -s -d ' ' -)"
}

status() { doing "${kube[@]}" get jobset,pods --selector "jobset.sigs.k8s.io/jobset-name=$name" --output wide; }
logs() { doing "${kube[@]}" logs "job/$name-worker-0" --container rapo --prefix --all-pods=true --tail 40 $follow; }
delete() { doing "${kube[@]}" delete jobset "$name"; }

verb=${1-}
shift || true
case $verb in
  --dry-run) fail "the verb comes first: bash launch/gke.sh VERB --dry-run ..." ;;
  apply | show | xpk | status | logs | delete) ;;
  *) fail "${verb:-no verb} must be apply, show, xpk, status, logs or delete." ;;
esac
options "$@"
case $verb in
  show) prepare && show_manifest ;;
  xpk) need xpk && through_xpk ;;
  *) need kubectl && "$verb" ;;
esac
