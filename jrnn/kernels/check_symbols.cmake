# Fails if an object file has external symbols other than ALLOWED. Otherwise code for old CPUs might
# call an inline function that was compiled for AVX-512.
foreach(object ${OBJECTS})
  execute_process(COMMAND "${NM}" --defined-only --extern-only "${object}"
    OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]+" lines "${output}")
  foreach(line ${lines})
    if(NOT line MATCHES " T ${ALLOWED}$")
      message(FATAL_ERROR "${object}: ${line}\nkernels must define everything except ${ALLOWED} "
        "in an anonymous namespace, and must not use inline functions or templates of other headers")
    endif()
  endforeach()
endforeach()
