# Twinlock boot script for U-Boot. Disk: @NAME@.
#
# Reads two copies of the boot record (an environment block of 0x200 bytes with CRC-32, one sector each),
# takes the newer one, counts a try of a pending trial down *before* it boots the trial, and boots:
#   trial > default slot > the other slot if it is good > recovery.
# Writes nothing unless a trial is pending. A record that cannot be read never points at a slot: recovery boots.
#
# Only commands that every U-Boot with the `distro` boot flow has: read, write, load, env import/export, itest.
# Numbers are compared with `itest 0x..`: `test -ge` reads decimal and would take 0xa for 0.

setenv tl_vars tl_armed tl_default tl_failed tl_reason tl_seq tl_trial tl_tries tl_try tl_version
setenv tl_addr @KERNEL_ADDRESS@
setenv tl_best 0
setenv tl_bestseq 0
setenv tl_besttries 0
setenv tl_same 0
${devtype} dev ${devnum}

setenv tl_read 'setenv tl_version 0; if ${devtype} read ${tl_addr} ${tl_blk} 1; then env import -c ${tl_addr} 0x200 ${tl_vars}; fi'

# The copy with the higher number is newer; of two with the same number, the one with fewer tries left.
setenv tl_newer 'setenv tl_best ${tl_copy}; setenv tl_bestseq ${tl_seq}; setenv tl_besttries ${tl_tries}'
setenv tl_judge 'if test "${tl_version}" = 1; then if test ${tl_best} = 0; then run tl_newer; else if itest 0x${tl_seq} -gt 0x${tl_bestseq}; then run tl_newer; else if itest 0x${tl_seq} -eq 0x${tl_bestseq}; then setenv tl_same 1; if itest 0x${tl_tries} -lt 0x${tl_besttries}; then run tl_newer; fi; fi; fi; fi; fi'

setenv tl_blk @RECORD_0@
setenv tl_copy 1
run tl_read
run tl_judge
setenv tl_blk @RECORD_1@
setenv tl_copy 2
run tl_read
run tl_judge

# Read the chosen copy again. The other place is the one that gets written, unless both have the same number: then the
# chosen one is where this script counted before, and the other is the agent's. A copy of the agent's is never written
# over while there is another place: nothing here is flushed, and one cut may tear what the last one left.
setenv tl_version 0
setenv tl_spare @RECORD_1@
setenv tl_blk @RECORD_0@
if test ${tl_best} = 2; then setenv tl_blk @RECORD_1@; setenv tl_spare @RECORD_0@; fi
if test ${tl_same} = 1; then setenv tl_spare ${tl_blk}; fi
if test ${tl_best} != 0; then run tl_read; fi

setenv tl_mode
setenv tl_args_a 'root=PARTUUID=@PARTUUID_A@ twinlock.slot=a'
setenv tl_args_b 'root=PARTUUID=@PARTUUID_B@ twinlock.slot=b'
setenv tl_args_recovery 'root=PARTUUID=@PARTUUID_RECOVERY@ twinlock.slot=recovery'
setenv tl_load '@LOAD@'
# A read that fails once is no reason to leave a slot: media have bad moments. A load that works does not return.
setenv tl_tryload 'for tl_n in 1 2 3; do run tl_load; done'
setenv tl_boot_a 'setenv tl_part @NUMBER_A@; setenv bootargs "@KERNEL_ARGS@ ${tl_args_a}${tl_mode}"; echo twinlock: booting slot a; run tl_tryload'
setenv tl_boot_b 'setenv tl_part @NUMBER_B@; setenv bootargs "@KERNEL_ARGS@ ${tl_args_b}${tl_mode}"; echo twinlock: booting slot b; run tl_tryload'
setenv tl_boot_recovery 'setenv tl_part @NUMBER_RECOVERY@; setenv bootargs "@KERNEL_ARGS@ ${tl_args_recovery}"; echo twinlock: booting recovery; run tl_tryload'

setenv tl_bad_a 0
setenv tl_bad_b 0
if test "${tl_failed}" = a; then setenv tl_bad_a 1; fi
if test "${tl_failed}" = b; then setenv tl_bad_b 1; fi
if test "${tl_failed}" = ab; then setenv tl_bad_a 1; setenv tl_bad_b 1; fi

# A slot is booted as a trial only when the lower count is on the medium.
setenv tl_trying none
if test "${tl_version}" = 1; then
  if test "${tl_try}" = a; then setenv tl_trying a; fi
  if test "${tl_try}" = b; then setenv tl_trying b; fi
  # A slot on trial never serves as a way out: its tries are all it has.
  if test ${tl_trying} = a; then setenv tl_bad_a 1; fi
  if test ${tl_trying} = b; then setenv tl_bad_b 1; fi
  if test ${tl_trying} != none; then
    setenv tl_left none
    if test "${tl_tries}" = 7; then setenv tl_left 6; fi
    if test "${tl_tries}" = 6; then setenv tl_left 5; fi
    if test "${tl_tries}" = 5; then setenv tl_left 4; fi
    if test "${tl_tries}" = 4; then setenv tl_left 3; fi
    if test "${tl_tries}" = 3; then setenv tl_left 2; fi
    if test "${tl_tries}" = 2; then setenv tl_left 1; fi
    if test "${tl_tries}" = 1; then setenv tl_left 0; fi
    if test ${tl_left} != none; then
      echo twinlock: trial of slot ${tl_trying}, tries left after this one: ${tl_left}
      setenv tl_tries ${tl_left}
      if env export -c -s 0x200 ${tl_addr} ${tl_vars}; then
        if ${devtype} write ${tl_addr} ${tl_spare} 1; then
          # The system on trial must know that it is: it decides whether it stays.
          setenv tl_mode ' twinlock.trial'
          run tl_boot_${tl_trying}
          setenv tl_mode
          echo twinlock: slot ${tl_trying} does not load
        else
          echo twinlock: the boot record cannot be written, no trial
        fi
      fi
    else
      echo twinlock: the tries of slot ${tl_trying} are used up
    fi
  fi
  if test "${tl_default}" = a; then
    if test ${tl_bad_a} = 0; then run tl_boot_a; fi
    if test ${tl_bad_a} = 0; then if test ${tl_bad_b} = 0; then run tl_boot_b; fi; fi
  fi
  if test "${tl_default}" = b; then
    if test ${tl_bad_b} = 0; then run tl_boot_b; fi
    if test ${tl_bad_b} = 0; then if test ${tl_bad_a} = 0; then run tl_boot_a; fi; fi
  fi
else
  echo twinlock: no valid copy of the boot record
fi

run tl_boot_recovery
echo 'twinlock: nothing boots, starting over in 30 seconds'
sleep 30
reset
